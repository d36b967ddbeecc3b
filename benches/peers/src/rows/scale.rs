//! How large it may get, and how the hand-off changes with threads, batches and depth.

use super::{Figure, Row};
use crate::work::{
    depth,
    hand_off::{crossbeam, crossbeam_chunks, flume, kanal, postroom},
    scale,
    sweeps::{batches, threads},
};

const DEPTHS: &[Figure] = &points(["1000", "10000", "100000", "1000000", "10000000"]);
const THREADS: &[Figure] = &points(["1", "2", "4", "8"]);
const BATCHES: &[Figure] = &points(["1", "4", "16", "64", "256"]);
const DECLARE: &[Figure] =
    &[Figure { name: "10,000 queues", unit: "ms" }, Figure { name: "10,000 bindings", unit: "ms" }];
const STOP: &[Figure] = &[Figure { name: "", unit: "ms" }];
const MEMORY: &[Figure] = &[
    Figure { name: "idle queue of capacity 1024", unit: "bytes" },
    Figure { name: "queued u64", unit: "bytes" },
    Figure { name: "queued 128-byte struct", unit: "bytes" },
    Figure { name: "delayed u64", unit: "bytes" },
];

const fn points<const N: usize>(names: [&'static str; N]) -> [Figure; N] {
    let mut points = [const { Figure { name: "", unit: "ns" } }; N];
    let mut index = 0;
    while index < N {
        points[index].name = names[index];
        index += 1;
    }
    points
}

pub fn rows() -> Vec<Row> {
    let postroom = postroom::SELF.name;
    vec![
        Row::of("S15-depth", "u64, one in and one out on one thread while so many are queued", 100_000, DEPTHS)
            .exactly()
            .axis("messages queued")
            .repetitions(3)
            .reference(depth::CROSSBEAM)
            .targets(postroom, 4, 1.3, Some((postroom, 0)))
            .gauge(depth::POSTROOM, depth::postroom)
            .gauge(depth::CROSSBEAM, depth::crossbeam),
        Row::of("threads", "128-byte struct, so many producers and as many consumers, capacity 1024", 200_000, THREADS)
            .axis("producers and consumers")
            .repetitions(5)
            .reference(crossbeam::SELF)
            .gauge(postroom::SELF, threads::postroom)
            .gauge(crossbeam::SELF, threads::crossbeam)
            .gauge(flume::SELF, threads::flume)
            .gauge(kanal::SELF, threads::kanal),
        Row::of(
            "batches",
            "128-byte struct, one producer, one consumer, so many messages in a batch",
            200_000,
            BATCHES,
        )
        .axis("messages in a batch")
        .repetitions(5)
        .reference(crossbeam_chunks::SELF)
        .gauge(postroom::SELF, batches::postroom)
        .gauge(crossbeam_chunks::SELF, batches::crossbeam),
        Row::of(
            "scale-declare",
            "queues declared, then each bound to one topic by a pattern of its own",
            10_000,
            DECLARE,
        )
        .repetitions(5)
        .targets(postroom, 0, 1000.0, None)
        .targets(postroom, 1, 1000.0, None)
        .gauge(scale::SELF, scale::declare),
        Row::of("scale-stop", "256 sleeping workers of one consumer stopped", 256, STOP)
            .exactly()
            .repetitions(5)
            .targets(postroom, 0, 100.0, None)
            .gauge(scale::SELF, scale::stop),
        Row::of("scale-shutdown", "a broker with 256 queues and a sleeping consumer of each shut down", 256, STOP)
            .exactly()
            .repetitions(5)
            .targets(postroom, 0, 100.0, None)
            .gauge(scale::SELF, scale::shut_down),
        Row::of("scale-memory", "bytes of resident memory for each, in a process of its own", 1_000_000, MEMORY)
            .repetitions(3)
            .reference(scale::CROSSBEAM)
            .targets(postroom, 3, 136.0, None)
            .gauge(scale::SELF, scale::postroom_memory)
            .gauge(scale::CROSSBEAM, scale::crossbeam_memory)
            .note("no delay"),
    ]
}
