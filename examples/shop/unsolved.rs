//! Where everything ends that a module gave up on, until somebody looks after it: in one queue, or, if there is a
//! file, in the module's own queue for dead letters, which is in the file as well.

use crate::keeping::Keeping;
use crate::names::{MAIL, Order, UNSOLVED};
use postroom::{Broker, DeadLetter, Error, Message, Queue, QueueBuilder, QueueName};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

pub struct Unsolved {
    broker: Broker,
    keeping: Keeping,
    together: Queue<DeadLetter<Order>>,
    queues: Mutex<Vec<Queue<DeadLetter<Order>>>>,
}

impl Unsolved {
    /// Once this is full, the modules stop rather than lose anything: it must hold what a bad day brings.
    pub fn declare(broker: &Broker, keeping: &Keeping) -> Result<Self, Error> {
        let together = broker.queue(UNSOLVED).capacity(2_000_000).declare()?;
        let queues = Mutex::new(vec![together.clone()]);
        Ok(Self { broker: broker.clone(), keeping: keeping.clone(), together, queues })
    }

    /// Declares a module's queue, which is in the file if there is one, and whose dead letters end here.
    pub fn queue(
        &self,
        name: QueueName<Order>,
        described: impl FnOnce(QueueBuilder<Order>) -> QueueBuilder<Order>,
    ) -> Result<Queue<Order>, Error> {
        let queue = described(self.keeping.queue(&self.broker, name));
        if !self.keeping.is_on() {
            return queue.dead_letter_to(&self.together).declare();
        }
        let queue = queue.declare()?;
        self.queues.lock().unwrap().push(queue.dead_letters());
        Ok(queue)
    }

    fn queues(&self) -> Vec<Queue<DeadLetter<Order>>> {
        self.queues.lock().unwrap().clone()
    }

    pub fn list(&self) -> Vec<Message<DeadLetter<Order>>> {
        self.queues().iter().flat_map(|queue| queue.list(usize::MAX)).collect()
    }

    /// How many are in the queue of that name.
    pub fn count_in(&self, name: &str) -> usize {
        self.queues().iter().filter(|queue| queue.name() == name).map(Queue::len).sum()
    }

    /// Sends back what somebody has done something about, perhaps changed; how many that are. A letter that
    /// somebody looks at stays.
    pub fn send_back(
        &self,
        wanted: impl Fn(&DeadLetter<Order>) -> bool,
        changed: impl Fn(&Order) -> Order,
    ) -> Result<usize, Error> {
        let moved = self.queues().into_iter().map(|queue| {
            let edit = |letter: &DeadLetter<Order>| changed(letter.payload());
            queue.redrive().filter(&wanted).edit(edit).run().map(|redriven| redriven.moved)
        });
        moved.sum()
    }

    /// What is delivered twice, before a kill and after it, may be given up on twice, or solved and given up on: such
    /// letters are thrown away. How many that are.
    pub fn throw_away_doubles(&self, paid: &BTreeMap<u64, u64>) -> Result<usize, Error> {
        let bin = Queue::standalone(QueueBuilder::new("bin"))?;
        let mut seen = BTreeSet::new();
        // The queues of later modules first: they know more of an order.
        for queue in self.queues().iter().rev() {
            let solved = |letter: &DeadLetter<Order>| letter.queue() != MAIL.as_str() && paid.contains_key(&letter.id);
            queue.redrive().filter(|letter| solved(letter) || !seen.insert(letter.id)).to(&bin).run()?;
        }
        Ok(bin.purge())
    }

    pub fn print(&self) {
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for letter in self.list() {
            *kinds.entry(format!("{:<8} {}", letter.queue(), why(&letter))).or_default() += 1;
        }
        if kinds.is_empty() {
            println!("   nothing");
        }
        for (kind, count) in kinds {
            println!("   {count:>6} x {kind}");
        }
    }
}

fn why(letter: &DeadLetter<Order>) -> String {
    format!("{}: {}", letter.reason(), letter.error().unwrap_or("no error"))
}
