//! Group commit: one thread writes and syncs what has arrived meanwhile, then answers, then delivers.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Condvar, Mutex},
    thread::{self, JoinHandle},
};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::{Bytes, Engine, Folder, Task, Way, Writes};
use crate::work::{Block, Outcome, Tally, crew, crew::Share};

pub fn run<E: Engine>(n: u64, task: Task) -> Outcome {
    let folder = Folder::fresh();
    let (group, deliveries) = Group::open(E::open(folder.path()), task.sync);
    let consume = || -> Tally {
        let seen = deliveries.iter().take(n as usize).map(|(number, bytes): (u64, Bytes)| {
            let block = Block::from_bytes(&bytes);
            group.delete(number);
            block
        });
        let tally = seen.collect();
        group.flush();
        tally
    };
    let producer = |share: Share<Block>| -> Tally {
        publish(&group, share, task.way);
        Tally::default()
    };
    let mut threads: Vec<crew::Thread> = vec![Box::new(consume)];
    threads.extend(crew::shares(n, task.producers).map(|share| Box::new(move || producer(share)) as crew::Thread));
    let (elapsed, tallies) = crew::time(threads)?;
    tallies.into_iter().sum::<Tally>().check::<Block>(n)?;
    Ok(elapsed)
}

fn publish(group: &Group, mut share: Share<Block>, way: Way) {
    match way {
        Way::Waiting => share.for_each(|block| group.insert([block.to_bytes()]).wait()),
        Way::InFlight(most) => {
            let mut under_way = VecDeque::with_capacity(most);
            for block in share {
                if under_way.len() == most {
                    under_way.pop_front().into_iter().for_each(|oldest: Arc<Answer>| oldest.wait());
                }
                under_way.push_back(group.insert([block.to_bytes()]));
            }
            under_way.iter().for_each(|answer| answer.wait());
        }
        Way::Batches(size) => loop {
            let batch: Vec<Bytes> = share.by_ref().take(size).map(|block| block.to_bytes()).collect();
            if batch.is_empty() {
                return;
            }
            group.insert(batch).wait();
        },
    }
}

/// The thread that commits.
struct Group {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    arrived: Condvar,
}

#[derive(Default)]
struct Inbox {
    next: u64,
    writes: Writes,
    waiting: Vec<Arc<Answer>>,
    closing: bool,
}

#[derive(Default)]
struct Answer(Mutex<bool>, Condvar);

impl Answer {
    fn wait(&self) {
        let mut committed = self.0.lock().unwrap();
        while !*committed {
            committed = self.1.wait(committed).unwrap();
        }
    }
}

impl Group {
    fn open(mut engine: impl Engine, sync: bool) -> (Group, Receiver<(u64, Bytes)>) {
        let shared = Arc::new(Shared::default());
        let (deliver, deliveries) = unbounded();
        let its = Arc::clone(&shared);
        let thread = thread::spawn(move || while its.commit_once(&mut engine, sync, &deliver) {});
        (Group { shared, thread: Some(thread) }, deliveries)
    }

    fn insert(&self, messages: impl IntoIterator<Item = Bytes>) -> Arc<Answer> {
        let answer = Arc::new(Answer::default());
        let mut inbox = self.shared.inbox.lock().unwrap();
        for bytes in messages {
            let number = inbox.next;
            inbox.next += 1;
            inbox.writes.inserts.push((number, bytes));
        }
        self.push(inbox, &answer);
        answer
    }

    /// Goes along with a later commit.
    fn delete(&self, number: u64) {
        self.shared.inbox.lock().unwrap().writes.deletes.push(number);
    }

    fn flush(&self) {
        let answer = Arc::new(Answer::default());
        self.push(self.shared.inbox.lock().unwrap(), &answer);
        answer.wait();
    }

    fn push(&self, mut inbox: std::sync::MutexGuard<'_, Inbox>, answer: &Arc<Answer>) {
        inbox.waiting.push(Arc::clone(answer));
        let first = inbox.waiting.len() == 1;
        drop(inbox);
        if first {
            self.shared.arrived.notify_one();
        }
    }
}

impl Shared {
    /// Whether there may be more.
    fn commit_once(&self, engine: &mut impl Engine, sync: bool, deliver: &Sender<(u64, Bytes)>) -> bool {
        let mut inbox = self.inbox.lock().unwrap();
        while inbox.waiting.is_empty() && !inbox.closing {
            inbox = self.arrived.wait(inbox).unwrap();
        }
        let (writes, waiting, closing) = (mem::take(&mut inbox.writes), mem::take(&mut inbox.waiting), inbox.closing);
        drop(inbox);
        engine.commit(&writes, sync && !writes.inserts.is_empty());
        // All answers first, so that who waits for many is woken once.
        waiting.iter().for_each(|answer| *answer.0.lock().unwrap() = true);
        waiting.iter().for_each(|answer| answer.1.notify_one());
        for message in writes.inserts {
            // The consumer is gone only if it has failed.
            let _ = deliver.send(message);
        }
        !closing
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.shared.inbox.lock().unwrap().closing = true;
        self.shared.arrived.notify_one();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
