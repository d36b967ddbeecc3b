//! Work through an inbox is done once, or not at all.

use crate::common::quiet;
use crate::lab::Lab;
use crate::on_every_database;
use postroom::{Failure, InboxError, Message, Once, OutboxError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

on_every_database!(
    a_message_that_comes_twice_has_its_effect_once,
    work_that_fails_is_done_at_the_next_attempt,
    many_at_once_have_one_effect,
    every_consumer_has_its_own_memory,
    what_is_pruned_is_forgotten,
    ids_that_mean_something_else_after_a_restart_are_refused,
);

const ID: u64 = 5 << 40;

fn message(n: u64) -> Message<u64> {
    Message::new(n).with_id(ID + n)
}

fn effects(lab: &impl Lab) -> i64 {
    lab.number("SELECT count(*) FROM effects")
}

fn a_message_that_comes_twice_has_its_effect_once(lab: &impl Lab) {
    assert_eq!(lab.effect("billing", &message(1), false).unwrap(), Once::Done(()));
    assert_eq!(lab.effect("billing", &message(1), false).unwrap(), Once::AlreadyDone);
    assert_eq!(lab.effect("billing", &message(2), false).unwrap(), Once::Done(()));
    assert_eq!(effects(lab), 2);
}

fn work_that_fails_is_done_at_the_next_attempt(lab: &impl Lab) {
    quiet();
    let error = lab.effect("billing", &message(1), true).unwrap_err();
    assert!(matches!(&error, InboxError::Work(words) if words == "on purpose"), "{error}");
    assert_eq!(effects(lab), 0);
    assert_eq!(lab.effect("billing", &message(1), false).unwrap(), Once::Done(()));
    assert_eq!(effects(lab), 1);
}

fn many_at_once_have_one_effect(lab: &impl Lab) {
    let done: usize = thread::scope(|scope| {
        let handlers: Vec<_> =
            (0..8).map(|_| scope.spawn(|| lab.effect("billing", &message(1), false).unwrap())).collect();
        handlers.into_iter().map(|h| usize::from(h.join().unwrap() == Once::Done(()))).sum()
    });
    assert_eq!((done, effects(lab)), (1, 1));
}

fn every_consumer_has_its_own_memory(lab: &impl Lab) {
    for consumer in ["billing", "mail", "o'brien"] {
        assert_eq!(lab.effect(consumer, &message(1), false).unwrap(), Once::Done(()));
    }
    assert_eq!(effects(lab), 3);
}

fn what_is_pruned_is_forgotten(lab: &impl Lab) {
    lab.effect("billing", &message(1), false).unwrap();
    assert_eq!(lab.prune_inbox(Duration::from_secs(60)), 0);
    assert_eq!(lab.effect("billing", &message(1), false).unwrap(), Once::AlreadyDone);
    thread::sleep(Duration::from_millis(2));
    assert_eq!(lab.prune_inbox(Duration::ZERO), 1);
    assert_eq!(lab.effect("billing", &message(1), false).unwrap(), Once::Done(()));
}

fn ids_that_mean_something_else_after_a_restart_are_refused(lab: &impl Lab) {
    let brokers_own = Message::new(1).with_id(17);
    let error = lab.effect("billing", &brokers_own, false).unwrap_err();
    assert!(matches!(error, InboxError::Table(OutboxError::UnstableId { id: 17, .. })), "{error}");
    let failure = Failure::from(match error {
        InboxError::Table(error) => InboxError::<std::io::Error>::Table(error),
        InboxError::Work(_) => unreachable!(),
    });
    assert!(failure.is_permanent(), "another attempt would not help");
    assert_eq!(effects(lab), 0);
}

#[test]
fn a_panic_rolls_the_work_back() {
    quiet();
    let lab = crate::lab::SqliteLab::new();
    let inbox = postroom::SqliteInbox::new("inbox", "billing").unwrap();
    let mut db = lab.connection();
    let work = || {
        inbox.handle(&mut db, &message(1), |tx| -> Result<(), Failure> {
            tx.execute("INSERT INTO effects VALUES (1)", [])?;
            panic!("{}", crate::common::ON_PURPOSE)
        })
    };
    assert!(catch_unwind(AssertUnwindSafe(work)).is_err());
    assert_eq!(effects(&lab), 0);
    assert_eq!(lab.effect("billing", &message(1), false).unwrap(), Once::Done(()));
}
