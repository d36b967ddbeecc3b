//! Messages that are in a file before the publish returns.

use super::{Figure, Row};
use crate::work::durable::{
    self, Engine, Task, Way, bare::Bare, fjall::Fjall, group, packed::Packed, postroom, redb::Redb, reopen,
    sqlite::Sqlite, yaque,
};

const REOPEN: &[Figure] = &[
    Figure { name: "first delivery", unit: "ms" },
    Figure { name: "memory", unit: "KB" },
    Figure { name: "memory with 1 %", unit: "KB" },
];
const IN_MEMORY: &str = "number and bytes; no delivery; unsynced commits stay in memory and die with the process";

pub fn rows() -> Vec<Row> {
    let waiting = |producers| Task { way: Way::Waiting, producers, sync: true };
    let in_flight = |sync| Task { way: Way::InFlight(1024), producers: 1, sync };
    let in_batches = |sync| Task { way: Way::Batches(64), producers: 1, sync };
    let buffered = Task { sync: false, ..waiting(1) };
    let bare = Bare::SELF;
    vec![
        all(
            "S12-sync-1p",
            "128 bytes published and synced, handled, deleted; one producer that waits for each",
            1_000,
            waiting(1),
        ),
        all("S12-sync-8p", "the same by 8 producers, each of which waits", 8_000, waiting(8)).target(1.0 / 0.9, bare),
        all("S12-sync-32p", "the same by 32", 32_000, waiting(32)).target(1.0 / 0.9, bare),
        all("S13-sync-in-flight", "one producer with 1,024 under way", 100_000, in_flight(true))
            .target(1.0 / 0.6, bare),
        all("S13-sync-batches", "one producer, 64 at once", 50_000, in_batches(true)),
        files(
            "S13-buffered-in-flight",
            "written, not synced; one producer with 1,024 under way",
            100_000,
            in_flight(false),
        )
        .target(1.0 / 0.4, bare),
        files("S13-buffered-waiting", "written, not synced; one producer that waits for each", 20_000, buffered),
        files("S13-buffered-batches", "written, not synced; one producer, 64 at once", 100_000, in_batches(false)),
        reopened(),
    ]
}

/// Everybody who syncs.
fn all(name: &'static str, about: &'static str, n: u64, task: Task) -> Row {
    Row::cost(name, about, n)
        .needs(durable::on_disk)
        .reference(Bare::SELF)
        .entry(postroom::SELF, move |n| postroom::run(n, task))
        .entry(Bare::SELF, move |n| group::run::<Bare>(n, task))
        .entry(Sqlite::SELF, move |n| group::run::<Sqlite>(n, task))
        .entry(Packed::SELF, move |n| group::run::<Packed>(n, task))
        .entry(Redb::SELF, move |n| group::run::<Redb>(n, task))
        .note(if task.sync { Redb::SELF.note } else { IN_MEMORY })
        .entry(Fjall::SELF, move |n| group::run::<Fjall>(n, task))
}

/// And who does not.
fn files(name: &'static str, about: &'static str, n: u64, task: Task) -> Row {
    all(name, about, n, task).entry(yaque::SELF, move |n| yaque::run(n, task))
}

fn reopened() -> Row {
    let about = "a queue of 1,000,000 messages opened after its process was killed";
    let opened =
        |row: Row, contestant: crate::work::Contestant| row.gauge(contestant, move |n| reopen::run(n, contestant.name));
    let row = Row::of("S14-reopen", about, 1_000_000, REOPEN).needs(durable::on_disk).repetitions(3);
    let row = row.targets("postroom", 0, 2_000.0, None).targets("postroom", 1, 1.3, Some(("postroom", 2)));
    [postroom::SELF, Bare::SELF, Sqlite::SELF, Redb::SELF, Fjall::SELF].into_iter().fold(row, opened)
}
