//! Redis streams, 64 commands on the way at once: XADD, XREADGROUP, XACK.

use std::io;

use super::resp::{Connection, Reply};
use crate::work::{BATCH, Block, Contestant, Outcome, Tally, crew, crew::Share};

pub const SELF: Contestant = Contestant {
    name: "Redis streams",
    package: None,
    note: "a server over loopback, nothing on disk; pipelines of 64, read and acknowledged 64 at a time",
};

const STREAM: &[u8] = b"parcels";
const GROUP: &[u8] = b"workers";

pub fn address() -> Result<String, String> {
    super::address("POSTROOM_PEERS_REDIS", "redis-server")
}

pub fn one_to_one(n: u64) -> Outcome {
    let address = address()?;
    let prepared = prepare(&address).map_err(|error| error.to_string())?;
    let [producer, consumer] = prepared;
    let produce = move |share: Share<Block>| publish(producer, share).expect("the server is up");
    let consume = move || receive(consumer, n).expect("the server is up");
    crew::run::<Block, _, _, 1, 1>(n, [produce], [consume])
}

/// An empty stream with a group, and two connections.
fn prepare(address: &str) -> io::Result<[Connection; 2]> {
    let mut connection = Connection::open(address)?;
    connection.call(&[b"DEL", STREAM])?;
    connection.call(&[b"XGROUP", b"CREATE", STREAM, GROUP, b"0", b"MKSTREAM"])?;
    Ok([connection, Connection::open(address)?])
}

fn publish(mut connection: Connection, share: Share<Block>) -> io::Result<()> {
    let mut share = share.peekable();
    while share.peek().is_some() {
        let mut sent = 0;
        for block in share.by_ref().take(BATCH) {
            connection.push(&[b"XADD", STREAM, b"*", b"b", &block.to_bytes()]);
            sent += 1;
        }
        connection.flush()?;
        for _ in 0..sent {
            connection.reply()?;
        }
    }
    Ok(())
}

/// Acknowledges what it has read together with asking for more.
fn receive(mut connection: Connection, n: u64) -> io::Result<Tally> {
    let mut tally = Tally::default();
    let count = BATCH.to_string();
    let read: [&[u8]; 10] =
        [b"XREADGROUP", b"GROUP", GROUP, b"me", b"COUNT", count.as_bytes(), b"BLOCK", b"5000", b"STREAMS", STREAM];
    let read = [&read[..], &[b">"]].concat();
    connection.push(&read);
    connection.flush()?;
    while tally.count < n {
        let mut entries = entries(connection.reply()?)?;
        entries.iter().for_each(|(_, block)| tally.add(block));
        let ids = entries.iter_mut().map(|(id, _)| &id[..]);
        let acknowledge: Vec<&[u8]> = [&b"XACK"[..], STREAM, GROUP].into_iter().chain(ids).collect();
        connection.push(&acknowledge);
        if tally.count < n {
            connection.push(&read);
        }
        connection.flush()?;
        connection.reply()?;
    }
    Ok(tally)
}

/// Ids and payloads: a list of streams, each a name and a list of entries, each an id and a list of fields.
fn entries(reply: Reply) -> io::Result<Vec<(Vec<u8>, Block)>> {
    let missing = || io::Error::other("a message is missing");
    let entries = last(reply).and_then(last).and_then(list).ok_or_else(missing)?;
    let entry = |entry| {
        let mut entry = list(entry)?.into_iter();
        let (id, fields) = (entry.next()?, entry.next()?);
        match (id, last(fields)?) {
            (Reply::Text(id), Reply::Text(block)) => Some((id, Block::from_bytes(&block))),
            _ => None,
        }
    };
    entries.into_iter().map(entry).collect::<Option<_>>().ok_or_else(missing)
}

fn list(reply: Reply) -> Option<Vec<Reply>> {
    match reply {
        Reply::List(list) => Some(list),
        _ => None,
    }
}

fn last(reply: Reply) -> Option<Reply> {
    list(reply)?.pop()
}
