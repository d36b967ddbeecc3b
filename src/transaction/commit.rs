//! Carrying a transaction out: plan, promise, put in, let go.

use super::basket::Baskets;
use super::error::Trouble;
use super::staged::Staged;
use crate::queue::core::{Patience, Refusal};

/// Does all of them or none. On failure `operations` are as they were.
pub(super) fn carry_out(operations: &mut Vec<Box<dyn Staged>>, patience: Patience) -> Result<(), Trouble> {
    let mut baskets = Baskets::default();
    for (at, operation) in operations.iter_mut().enumerate() {
        baskets.operation = at;
        let planned = operation.plan(&mut baskets);
        planned.map_err(|(by, why)| Trouble { operation: at, target: operation.target(), by, why })?;
    }
    baskets.sort();
    #[cfg(feature = "sqlite")]
    let stow = super::durably::Stow::of(operations)?;
    admit_all(operations)?;
    if let Err(trouble) = promise_all(operations, &mut baskets, patience) {
        operations.iter().for_each(|operation| operation.unadmit());
        return Err(trouble);
    }
    #[cfg(feature = "sqlite")]
    if let Some(stow) = stow {
        return stow.carry_out(operations, baskets);
    }
    operations.drain(..).for_each(|operation| operation.deliver(&mut baskets));
    // What takes other locks, or runs the user's code, waits until none is held.
    baskets.put().into_iter().for_each(|unlocked| unlocked.finish());
    baskets.drop_waste();
    Ok(())
}

fn admit_all(operations: &[Box<dyn Staged>]) -> Result<(), Trouble> {
    for (at, operation) in operations.iter().enumerate() {
        if let Err((by, why)) = operation.admit() {
            operations[..at].iter().for_each(|admitted| admitted.unadmit());
            return Err(Trouble { operation: at, target: operation.target(), by, why });
        }
    }
    Ok(())
}

/// Every queue promises to take its messages, or none does. Nothing is promised while waiting, so that two
/// transactions cannot wait for each other.
fn promise_all(operations: &[Box<dyn Staged>], baskets: &mut Baskets, patience: Patience) -> Result<(), Trouble> {
    let trouble = |operation: usize, by, why| {
        let target = operations[operation].target();
        Trouble { operation, target, by, why }
    };
    for (operation, basket) in baskets.iter_mut() {
        if let Some(why) = basket.is_impossible() {
            return Err(trouble(operation, basket.by(), why));
        }
    }
    loop {
        let mut promised = 0;
        let mut refused = None;
        for (operation, basket) in baskets.iter_mut() {
            match basket.pledge() {
                Ok(()) => promised += 1,
                Err(refusal) => {
                    refused = Some((operation, refusal));
                    break;
                }
            }
        }
        let Some((operation, mut refusal)) = refused else { return Ok(()) };
        baskets.iter_mut().take(promised).for_each(|(_, basket)| basket.forgo());
        let Some((_, full)) = baskets.iter_mut().nth(promised) else { unreachable!("one has refused") };
        if refusal == Refusal::Full && full.waits(patience) {
            match full.wait(patience) {
                Ok(()) => continue,
                Err(end) => refusal = end,
            }
        }
        return Err(trouble(operation, full.by(), refusal.into()));
    }
}
