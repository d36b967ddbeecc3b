//! Where a group stands, as the file knows it.

use super::on_file::OnFile;
use crate::log::shelf::Shelf;
use crate::queue::durable::Depot;
use crate::store::{Batch, LiveMark, Reader, StoreError, StreamId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Before the group's name, in the name of a mark.
const GROUP: &str = "group/";
/// How many are read at once.
const PORTION: usize = 256;

/// One for each partition.
pub(crate) struct Marks {
    depot: Arc<Depot>,
    name: String,
    partitions: Vec<(StreamId, Arc<LiveMark>)>,
}

impl Marks {
    /// Notes where a group begins that is not known to the file yet. Waits for the commit.
    pub(crate) fn found<T: Send + Sync + 'static>(
        shelf: &Shelf<T>,
        group: &str,
        positions: &[u64],
    ) -> Result<(), StoreError> {
        let Some(first) = &shelf.partition(0).on_file else { return Ok(()) };
        let files = shelf.all().filter_map(|partition| partition.on_file.as_ref());
        let batch = files.zip(positions).fold(Batch::new(), |batch, (file, position)| {
            batch.mark(file.filed.stream, mark_name(group), position.to_string())
        });
        first.depot().store.commit(batch, first.durability()).map(drop)
    }

    /// Of a group that the file knows at these positions; `None` of a log that is only in memory.
    pub(crate) fn of<T: Send + Sync + 'static>(shelf: &Shelf<T>, group: &str, positions: &[u64]) -> Option<Self> {
        let depot = Arc::clone(shelf.partition(0).on_file.as_ref()?.depot());
        let files = shelf.all().filter_map(|partition| partition.on_file.as_ref());
        let marks =
            files.zip(positions).map(|(file, &position)| (file.filed.stream, Arc::new(LiveMark::new(position))));
        Some(Self { depot, name: mark_name(group), partitions: marks.collect() })
    }

    /// The group stands there now. Called under the lane's lock: nothing waits.
    #[inline]
    pub(crate) fn note(&self, partition: usize, committed: u64) {
        let (stream, mark) = &self.partitions[partition];
        if mark.set(committed) {
            // On a closed store it comes too late: the file keeps what it has.
            let _ = self.depot.store.submit_live(*stream, &self.name, mark);
        }
    }
}

/// The group is not to be found any more.
pub(crate) fn forget<T: Send + Sync + 'static>(shelf: &Shelf<T>, group: &str) {
    let Some(first) = &shelf.partition(0).on_file else { return };
    let files = shelf.all().filter_map(|partition| partition.on_file.as_ref());
    first.depot().note(files.fold(Batch::new(), |batch, file| batch.unmark(file.filed.stream, mark_name(group))));
}

fn mark_name(group: &str) -> String {
    format!("{GROUP}{group}")
}

/// All groups that the file knows, with their positions.
pub(super) fn all_of<T>(reader: &Reader<'_>, files: &[&OnFile<T>]) -> Result<BTreeMap<String, Vec<u64>>, StoreError> {
    let mut groups: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (partition, file) in files.iter().enumerate() {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let marks = reader.marks(file.filed.stream, after.as_deref(), PORTION)?;
            let Some((last, _)) = marks.last() else { break };
            after = Some(last.clone());
            for (name, value) in &marks {
                let name = std::str::from_utf8(name).ok().and_then(|name| name.strip_prefix(GROUP));
                let position = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
                if let (Some(name), Some(position)) = (name, position) {
                    groups.entry(name.to_owned()).or_insert_with(|| vec![0; files.len()])[partition] = position;
                }
            }
        }
    }
    Ok(groups)
}
