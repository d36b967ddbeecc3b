//! RabbitMQ, a classic durable queue: persistent messages, publisher confirms, a consumer that prefetches, acks.

use futures::{StreamExt, TryStreamExt, stream};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, Consumer, Result,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::FieldTable,
};

use super::{IN_FLIGHT, runtime};
use crate::work::{BATCH, Block, Contestant, Outcome, Tally, crew, crew::Share};

pub const SELF: Contestant = Contestant {
    name: "RabbitMQ",
    package: Some("lapin"),
    note: "a server over loopback, a classic durable queue; 256 publishes under way, 256 messages prefetched, \
           64 acknowledged at once",
};

const QUEUE: &str = "parcels";
const CONSUMER: &str = "me";
/// As a message's delivery mode: it goes to the queue's file.
const PERSISTENT: u8 = 2;

/// A channel ends with its connection, which ends when it is dropped.
type Link = (Connection, Channel);

pub fn address() -> std::result::Result<String, String> {
    super::address("POSTROOM_PEERS_RABBITMQ", "rabbitmq-server")
}

pub fn one_to_one(n: u64) -> Outcome {
    let address = address()?;
    let (publishing, receiving) = (runtime(), runtime());
    let (from, consumer) = receiving.block_on(declare(&address)).map_err(|error| error.to_string())?;
    let to = publishing.block_on(confirming(&address)).map_err(|error| error.to_string())?;
    let produce = move |share| publishing.block_on(publish(&to, share)).expect("the server is up");
    let consume = move || receiving.block_on(receive(&from, consumer, n)).expect("the server is up");
    crew::run::<Block, _, _, 1, 1>(n, [produce], [consume])
}

async fn connect(address: &str) -> Result<Link> {
    let connection = Connection::connect(&format!("amqp://{address}/%2f"), ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    Ok((connection, channel))
}

async fn confirming(address: &str) -> Result<Link> {
    let link = connect(address).await?;
    link.1.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(link)
}

/// The consumer of an empty queue.
async fn declare(address: &str) -> Result<(Link, Consumer)> {
    let link = connect(address).await?;
    let (channel, arguments) = (&link.1, FieldTable::default());
    channel.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await?;
    channel.queue_declare(QUEUE.into(), QueueDeclareOptions::durable(), arguments.clone()).await?;
    channel.basic_qos(IN_FLIGHT as u16, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(QUEUE.into(), CONSUMER.into(), options, arguments).await?;
    Ok((link, consumer))
}

async fn publish((_, channel): &Link, share: Share<Block>) -> Result<()> {
    let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    let publish = async |block: Block| -> Result<()> {
        let (options, bytes) = (BasicPublishOptions::default(), block.to_bytes());
        let confirm = channel.basic_publish("".into(), QUEUE.into(), options, &bytes, properties.clone()).await?;
        assert!(confirm.await?.is_ack(), "the server took it");
        Ok(())
    };
    stream::iter(share).map(publish).buffer_unordered(IN_FLIGHT).try_collect().await
}

/// Acknowledges without waiting, but ends with a question that the server answers after all acks.
async fn receive((_, channel): &Link, mut consumer: Consumer, n: u64) -> Result<Tally> {
    let mut tally = Tally::default();
    while tally.count < n
        && let Some(delivery) = consumer.try_next().await?
    {
        tally.add(&Block::from_bytes(&delivery.data));
        if tally.count % BATCH as u64 == 0 || tally.count == n {
            delivery.ack(BasicAckOptions { multiple: true }).await?;
        }
    }
    channel.basic_cancel(CONSUMER.into(), BasicCancelOptions::default()).await?;
    Ok(tally)
}
