//! NATS JetStream, its stream in memory: publishes that await the server's answer, a pull consumer, acks.

use async_nats::{
    Error,
    jetstream::{
        self, Context,
        consumer::{AckPolicy, PullConsumer, pull},
        stream::{Config, StorageType},
    },
};
use futures::{StreamExt, TryStreamExt, stream};

use super::{IN_FLIGHT, runtime};
use crate::work::{BATCH, Block, Contestant, Outcome, Tally, crew, crew::Share};

pub const SELF: Contestant = Contestant {
    name: "NATS JetStream",
    package: Some("async-nats"),
    note: "a server over loopback, a stream in memory; 256 publishes under way, 256 messages pulled at once, \
           64 acknowledged at once",
};

const STREAM: &str = "parcels";

pub fn address() -> Result<String, String> {
    super::address("POSTROOM_PEERS_NATS", "nats-server")
}

pub fn one_to_one(n: u64) -> Outcome {
    let address = address()?;
    let (publishing, receiving) = (runtime(), runtime());
    let consumer = receiving.block_on(declare(&address)).map_err(|error| error.to_string())?;
    let context = publishing.block_on(connect(&address)).map_err(|error| error.to_string())?;
    let produce = move |share| publishing.block_on(publish(context, share)).expect("the server is up");
    let consume = move || receiving.block_on(receive(consumer, n)).expect("the server is up");
    crew::run::<Block, _, _, 1, 1>(n, [produce], [consume])
}

async fn connect(address: &str) -> Result<Context, Error> {
    Ok(jetstream::new(async_nats::connect(address).await?))
}

/// The consumer of an empty stream. An ack is for all messages before it as well.
async fn declare(address: &str) -> Result<PullConsumer, Error> {
    let context = connect(address).await?;
    // There is none before the first run.
    let _ = context.delete_stream(STREAM).await;
    let config = Config { name: STREAM.into(), storage: StorageType::Memory, ..Default::default() };
    let stream = context.create_stream(config).await?;
    let config = pull::Config { ack_policy: AckPolicy::All, ..Default::default() };
    Ok(stream.create_consumer(config).await?)
}

async fn publish(context: Context, share: Share<Block>) -> Result<(), Error> {
    let publish = async |block: Block| -> Result<(), Error> {
        context.publish(STREAM, block.to_bytes().to_vec().into()).await?.await?;
        Ok(())
    };
    stream::iter(share).map(publish).buffer_unordered(IN_FLIGHT).try_collect().await
}

/// The last ack waits until the server has it, and so all of them.
async fn receive(consumer: PullConsumer, n: u64) -> Result<Tally, Error> {
    let mut tally = Tally::default();
    let mut messages = consumer.stream().max_messages_per_batch(IN_FLIGHT).messages().await?;
    while let Some(message) = messages.try_next().await? {
        tally.add(&Block::from_bytes(&message.payload));
        if tally.count == n {
            message.double_ack().await?;
            break;
        }
        if tally.count % BATCH as u64 == 0 {
            message.ack().await?;
        }
    }
    Ok(tally)
}
