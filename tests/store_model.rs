//! Whatever is done to a store, in whatever order and however often it is opened anew, it holds what a plain
//! collection would.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

mod common;

use common::store::{ALL, Folder};
use postroom::store::{Batch, Change, Durability, Item, Limit, Options, Reader, Seq, Store, StreamId, insert_in};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

const STREAMS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    Insert {
        stream: usize,
        size: usize,
        due: Option<u64>,
    },
    /// Many at once, alike but for the last ones of them.
    Crowd {
        stream: usize,
        count: usize,
        size: usize,
        odd: usize,
    },
    Delete {
        stream: usize,
        seq: Seq,
    },
    Update {
        stream: usize,
        seq: Seq,
        attempts: u32,
        due: Option<u64>,
    },
    Move {
        from: usize,
        seq: Seq,
        to: usize,
    },
    Trim {
        stream: usize,
        seq: Seq,
    },
    DeleteRange {
        stream: usize,
        from: Seq,
        end: Seq,
    },
    Mark {
        stream: usize,
        name: u8,
        value: u8,
    },
    Unmark {
        stream: usize,
        name: u8,
    },
}

#[derive(Debug, Clone)]
enum Act {
    Commit(Vec<Step>, Durability),
    Lazily(Vec<Step>),
    /// Inserted by a transaction of the user's.
    InTransaction(usize),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (stream, seq, due) = (0..STREAMS, 0..60_u64, proptest::option::of(0..5_u64));
    let step = prop_oneof![
        6 => (stream.clone(), prop_oneof![9 => 0..50_usize, 1 => 9_000..20_000_usize], due.clone())
            .prop_map(|(stream, size, due)| Step::Insert { stream, size, due }),
        2 => (stream.clone(), 2..24_usize, prop_oneof![9 => 0..50_usize, 1 => 3_000..5_000_usize], 0..4_usize)
            .prop_map(|(stream, count, size, odd)| Step::Crowd { stream, count, size, odd }),
        1 => (stream.clone(), 300..600_usize)
            .prop_map(|(stream, count)| Step::Crowd { stream, count, size: 3, odd: 0 }),
        2 => (stream.clone(), seq.clone(), 1..30_u64)
            .prop_map(|(stream, from, count)| Step::DeleteRange { stream, from, end: from + count }),
        4 => (stream.clone(), seq.clone()).prop_map(|(stream, seq)| Step::Delete { stream, seq }),
        2 => (stream.clone(), seq.clone(), 0..9_u32, due)
            .prop_map(|(stream, seq, attempts, due)| Step::Update { stream, seq, attempts, due }),
        2 => (stream.clone(), seq.clone(), stream.clone()).prop_map(|(from, seq, to)| Step::Move { from, seq, to }),
        1 => (stream.clone(), seq).prop_map(|(stream, seq)| Step::Trim { stream, seq }),
        2 => (stream.clone(), 0..4_u8, any::<u8>()).prop_map(|(stream, name, value)| Step::Mark { stream, name, value }),
        1 => (stream, 0..4_u8).prop_map(|(stream, name)| Step::Unmark { stream, name }),
    ];
    proptest::collection::vec(step, 0..8)
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let durability = prop_oneof![4 => Just(Durability::Buffered), 1 => Just(Durability::Sync)];
    let act = prop_oneof![
        6 => (steps(), durability).prop_map(|(steps, durability)| Act::Commit(steps, durability)),
        3 => steps().prop_map(Act::Lazily),
        2 => (0..STREAMS).prop_map(Act::InTransaction),
        1 => Just(Act::Reopen),
    ];
    proptest::collection::vec(act, 1..25)
}

#[derive(Default)]
struct Model {
    items: [BTreeMap<Seq, Item>; STREAMS],
    next: [Seq; STREAMS],
    marks: HashMap<(usize, u8), u8>,
}

impl Model {
    fn place(&mut self, stream: usize) -> Seq {
        self.next[stream] += 1;
        self.next[stream] - 1
    }

    fn insert(&mut self, stream: usize, item: Item) -> Seq {
        let seq = self.place(stream);
        self.items[stream].insert(seq, item);
        seq
    }

    /// Takes a step that inserts nothing; answers the place it takes, if it takes one.
    fn step(&mut self, step: &Step) -> Option<Seq> {
        match *step {
            Step::Insert { .. } | Step::Crowd { .. } => unreachable!("inserted by whoever has the items"),
            Step::Delete { stream, seq } => drop(self.items[stream].remove(&seq)),
            Step::Update { stream, seq, attempts, due } => {
                if let Some(item) = self.items[stream].get_mut(&seq) {
                    (item.attempts, item.due_at) = (attempts, due);
                }
            }
            Step::Move { from, seq, to } => {
                let place = self.place(to);
                if let Some(item) = self.items[from].remove(&seq) {
                    self.items[to].insert(place, item);
                }
                return Some(place);
            }
            Step::Trim { stream, seq } => self.items[stream].retain(|&at, _| at >= seq),
            Step::DeleteRange { stream, from, end } => {
                self.items[stream].retain(|&at, _| !(from..end.min(self.next[stream])).contains(&at));
            }
            Step::Mark { stream, name, value } => drop(self.marks.insert((stream, name), value)),
            Step::Unmark { stream, name } => drop(self.marks.remove(&(stream, name))),
        }
        None
    }

    fn agrees_with(&self, store: &Store, streams: &[StreamId]) {
        let reader = store.reader().unwrap();
        let left_over = "SELECT (SELECT count(*) FROM postroom_pack_gone WHERE id NOT IN (SELECT id FROM postroom_pack)) \
                         + (SELECT count(*) FROM postroom_pack_gone WHERE instr(gone, '-') = 0)";
        assert_eq!(
            reader.sql().query_row(left_over, [], |row| row.get::<_, i64>(0)),
            Ok(0),
            "a row of which nothing is left"
        );
        for (at, &stream) in streams.iter().enumerate() {
            let rows = reader.read(stream, 0, ALL).unwrap();
            let found: BTreeMap<_, _> = rows.into_iter().map(|row| (row.seq, row.item)).collect();
            assert_eq!(found, self.items[at]);
            let infos = reader.streams().unwrap();
            let info = infos.iter().find(|info| info.id == stream).unwrap();
            assert_eq!((info.next, info.count), (self.next[at], found.len() as u64));
            self.agrees_in_part(&reader, stream, &found);
            let resting: Vec<_> = self.items[at].values().filter_map(|item| item.due_at).collect();
            assert_eq!(reader.count_resting(stream).unwrap(), resting.len() as u64);
            assert_eq!(reader.next_due(stream).unwrap(), resting.into_iter().min());
            let ready = reader.read_ready(stream, 0, ALL).unwrap();
            assert!(
                ready.iter().map(|row| row.seq).eq(found.iter().filter(|(_, i)| i.due_at.is_none()).map(|(s, _)| *s))
            );
            for name in 0..4 {
                let value = reader.mark(stream, [name]).unwrap();
                assert_eq!(value, self.marks.get(&(at, name)).map(|&value| vec![value]));
            }
        }
    }
}

impl Model {
    /// The same, asked for in other words.
    fn agrees_in_part(&self, reader: &Reader<'_>, stream: StreamId, found: &BTreeMap<Seq, Item>) {
        assert_eq!(reader.first(stream).unwrap(), found.keys().next().copied());
        let bytes = |seqs: Range<Seq>| found.range(seqs).map(|(_, item)| item.payload.len() as u64).sum::<u64>();
        for seqs in [0..Seq::MAX, 0..7, 3..40, 17..18] {
            assert_eq!(reader.payload_bytes(stream, seqs.clone()).unwrap(), bytes(seqs));
        }
        for seq in [0, 5, 11, 29, 300] {
            let one = reader.get(stream, seq).unwrap().map(|row| row.item);
            assert_eq!(one.as_ref(), found.get(&seq), "place {seq}");
            let portion = reader.read(stream, seq, Limit::items(5).bytes(70)).unwrap();
            let mut bytes = 0;
            let asked = found.range(seq..).take(5).take_while(|(_, item)| {
                let comes = bytes < 70;
                bytes += item.payload.len() + item.routing_key.len() + item.key.as_ref().map_or(0, String::len);
                comes
            });
            assert!(portion.iter().map(|row| (&row.seq, &row.item)).eq(asked), "from {seq}");
        }
        // As people see them.
        let sql = "SELECT seq, message, priority, routing_key, schema, bytes, payload FROM postroom_items \
                   WHERE stream = (SELECT name FROM postroom_stream WHERE id = ?) ORDER BY seq";
        let mut view = reader.sql().prepare(sql).unwrap();
        let mut rows = view.query([stream.get()]).unwrap();
        for (&seq, item) in found {
            let row = rows.next().unwrap().expect("as many as there are");
            let seen: (i64, i64, u8, String, u32, i64, Vec<u8>) = row.try_into().unwrap();
            let Item { id, priority, routing_key, schema, payload, .. } = item.clone();
            let bytes = payload.len() as i64;
            assert_eq!(seen, (seq as i64, id as i64, priority, routing_key, schema, bytes, payload));
        }
        assert!(rows.next().unwrap().is_none());
    }
}

/// A crowd, of which the last ones differ in something.
fn crowd(count: usize, size: usize, odd: usize, number: &mut u64) -> Vec<Item> {
    let mut items = Vec::new();
    for at in 0..count {
        *number += 1;
        let mut item = Item {
            id: *number ^ 0b101,
            published_at: 1_000_000 + (*number * 7) % 50,
            routing_key: "many".to_owned(),
            payload: vec![*number as u8; if size < 9 { 0 } else { size + at % 3 }],
            ..Item::default()
        };
        match odd {
            1 if at + 3 > count => item.priority = 2,
            2 if at + 5 > count => item.key = Some("k".to_owned()),
            3 if at % 5 == 4 => item.schema = 1,
            _ => {}
        }
        items.push(item);
    }
    items
}

/// The batch that does these steps, and the places it is to answer.
fn batch(steps: &[Step], model: &mut Model, streams: &[StreamId], number: &mut u64) -> (Batch, Vec<Seq>) {
    let (mut batch, mut places) = (Batch::new(), Vec::new());
    for step in steps {
        *number += 1;
        let (stream, items) = match *step {
            Step::Insert { stream, size, due } => {
                let payload = vec![*number as u8; size];
                (stream, vec![Item { id: *number, due_at: due, payload, ..Item::default() }])
            }
            Step::Crowd { stream, count, size, odd } => (stream, crowd(count, size, odd, number)),
            _ => {
                places.extend(model.step(step));
                (0, Vec::new())
            }
        };
        for item in items {
            places.push(model.insert(stream, item.clone()));
            batch = batch.insert(streams[stream], item);
        }
        batch = match *step {
            Step::Insert { .. } | Step::Crowd { .. } => batch,
            Step::Delete { stream, seq } => batch.delete(streams[stream], seq),
            Step::Update { stream, seq, attempts, due } => {
                batch.update(streams[stream], seq, Change::new().attempts(attempts).due_at(due))
            }
            Step::Move { from, seq, to } => batch.move_to(streams[from], seq, streams[to], Change::new()),
            Step::Trim { stream, seq } => batch.trim(streams[stream], seq),
            Step::DeleteRange { stream, from, end } => batch.delete_range(streams[stream], from..end),
            Step::Mark { stream, name, value } => batch.mark(streams[stream], [name], [value]),
            Step::Unmark { stream, name } => batch.unmark(streams[stream], [name]),
        };
    }
    (batch, places)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_store_holds_what_a_plain_collection_would(acts in acts()) {
        let folder = Folder::new();
        let open = || Store::open(folder.file(), Options::new().wal_bytes(100_000)).unwrap();
        let declare = |store: &Store| -> Vec<_> {
            (0..STREAMS).map(|n| store.declare("queue", &n.to_string(), "").unwrap()).collect()
        };
        let mut store = open();
        let streams = declare(&store);
        let (mut model, mut number) = (Model::default(), 0);
        for act in &acts {
            match act {
                Act::Commit(steps, durability) => {
                    let (batch, places) = batch(steps, &mut model, &streams, &mut number);
                    prop_assert_eq!(store.commit(batch, *durability).unwrap().to_vec(), places);
                }
                Act::Lazily(steps) => {
                    let (batch, _) = batch(steps, &mut model, &streams, &mut number);
                    store.submit_lazily(batch).unwrap();
                }
                Act::InTransaction(stream) => {
                    // What is handed in before is committed after it, unless somebody waits.
                    store.flush(Durability::Buffered).unwrap();
                    let mut mine = store.connect().unwrap();
                    let item = Item { payload: b"mine".to_vec(), ..Item::default() };
                    let seq = store.transaction(&mut mine, |tx| insert_in(tx, streams[*stream], &item)).unwrap();
                    prop_assert_eq!(model.insert(*stream, item), seq);
                }
                Act::Reopen => {
                    drop(store);
                    store = open();
                    prop_assert_eq!(&declare(&store), &streams);
                    model.agrees_with(&store, &streams);
                }
            }
        }
        store.flush(Durability::Buffered).unwrap();
        model.agrees_with(&store, &streams);
        store.check().unwrap();
    }
}
