//! The hand-off again, with more and more threads and larger and larger batches.

use super::{
    Block, Outcome,
    hand_off::{crossbeam, crossbeam_chunks, flume, kanal, postroom},
};

/// Nanoseconds for each message, at each point of the axis.
pub type Curve = Result<Vec<f64>, String>;

/// So many producers, and as many consumers.
pub mod threads {
    use super::*;

    pub fn postroom(n: u64) -> Curve {
        curve(
            n,
            [
                postroom::many::<Block, 1>,
                postroom::many::<Block, 2>,
                postroom::many::<Block, 4>,
                postroom::many::<Block, 8>,
            ],
        )
    }

    pub fn crossbeam(n: u64) -> Curve {
        curve(
            n,
            [
                crossbeam::many::<Block, 1>,
                crossbeam::many::<Block, 2>,
                crossbeam::many::<Block, 4>,
                crossbeam::many::<Block, 8>,
            ],
        )
    }

    pub fn flume(n: u64) -> Curve {
        curve(n, [flume::many::<Block, 1>, flume::many::<Block, 2>, flume::many::<Block, 4>, flume::many::<Block, 8>])
    }

    pub fn kanal(n: u64) -> Curve {
        curve(n, [kanal::many::<Block, 1>, kanal::many::<Block, 2>, kanal::many::<Block, 4>, kanal::many::<Block, 8>])
    }
}

/// So many messages in a batch.
pub mod batches {
    use super::*;

    pub fn postroom(n: u64) -> Curve {
        let one: fn(u64) -> Outcome = postroom::batches_of::<Block, 1>;
        curve(
            n,
            [
                one,
                postroom::batches_of::<Block, 4>,
                postroom::batches_of::<Block, 16>,
                postroom::batches_of::<Block, 64>,
                postroom::batches_of::<Block, 256>,
            ],
        )
    }

    pub fn crossbeam(n: u64) -> Curve {
        let one: fn(u64) -> Outcome = crossbeam_chunks::batches_of::<Block, 1>;
        curve(
            n,
            [
                one,
                crossbeam_chunks::batches_of::<Block, 4>,
                crossbeam_chunks::batches_of::<Block, 16>,
                crossbeam_chunks::batches_of::<Block, 64>,
                crossbeam_chunks::batches_of::<Block, 256>,
            ],
        )
    }
}

fn curve<const N: usize>(n: u64, points: [fn(u64) -> Outcome; N]) -> Curve {
    points.into_iter().map(|run| Ok(run(n)?.as_nanos() as f64 / n as f64)).collect()
}
