//! yaque: a queue in files, for one sender and one receiver.

use futures::executor::block_on;
use yaque::{Receiver, Sender, channel};

use super::{Folder, Task, Way};
use crate::work::{Block, Contestant, Outcome, Tally, crew, crew::Share};

pub const SELF: Contestant = Contestant {
    name: "yaque",
    package: Some("yaque"),
    note: "written by the sender itself, never synced; what was received is known only after an orderly end",
};

pub fn run(n: u64, task: Task) -> Outcome {
    let folder = Folder::fresh();
    let (mut sender, mut receiver) = channel(folder.path().join("queue")).map_err(|error| error.to_string())?;
    let share = Share::<Block>::of(0..n);
    let produce = || -> Tally {
        block_on(send(&mut sender, share, task.way));
        Tally::default()
    };
    let consume = || block_on(receive(&mut receiver, n));
    let (elapsed, tallies) = crew::time(vec![Box::new(produce), Box::new(consume)])?;
    tallies.into_iter().sum::<Tally>().check::<Block>(n)?;
    Ok(elapsed)
}

async fn send(sender: &mut Sender, mut share: Share<Block>, way: Way) {
    let Way::Batches(size) = way else {
        for block in share {
            sender.send(block.to_bytes()).await.expect("sent");
        }
        return;
    };
    loop {
        let batch: Vec<_> = share.by_ref().take(size).map(|block| block.to_bytes()).collect();
        if batch.is_empty() {
            return;
        }
        sender.send_batch(batch).await.expect("sent");
    }
}

async fn receive(receiver: &mut Receiver, n: u64) -> Tally {
    let mut tally = Tally::default();
    for _ in 0..n {
        let message = receiver.recv().await.expect("received");
        tally.add(&Block::from_bytes(&message));
        message.commit().expect("committed");
    }
    tally
}
