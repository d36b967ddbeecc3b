//! Where orders come from: JSON lines, or a seeded generator.

use crate::args;
use crate::names::{Card, Order};
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};

pub enum Source {
    Lines { name: String, reader: Box<dyn BufRead>, line: u64 },
    MadeUp { next: u64, last: u64, seed: u64 },
}

/// In cents, in the morning.
pub const PRICE_LIST: [(&str, u64); 4] = [("kettle", 2_990), ("lamp", 4_500), ("chair", 12_900), ("teapot", 1_990)];

/// One thing a source has to say.
pub enum Item {
    Order(Order),
    BadLine(String),
}

pub fn open(source: &args::Source) -> io::Result<Source> {
    let (name, reader): (String, Box<dyn BufRead>) = match source {
        args::Source::MadeUp { orders, seed } => return Ok(Source::MadeUp { next: 1, last: *orders, seed: *seed }),
        args::Source::Stdin => ("standard input".into(), Box::new(io::stdin().lock())),
        args::Source::File(path) => {
            let file = File::open(path).map_err(|problem| cannot_read(path, &problem))?;
            (path.clone(), Box::new(BufReader::new(file)))
        }
    };
    Ok(Source::Lines { name, reader, line: 0 })
}

fn cannot_read(name: &str, problem: &io::Error) -> io::Error {
    io::Error::new(problem.kind(), format!("cannot read {name}: {problem}"))
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lines { name, .. } => write!(f, "JSON lines from {name}"),
            Self::MadeUp { last, seed, .. } => write!(f, "{last} made up with seed {seed}"),
        }
    }
}

impl Source {
    /// How many lines or orders it has given so far.
    pub fn position(&self) -> u64 {
        match self {
            Self::Lines { line, .. } => *line,
            Self::MadeUp { next, .. } => *next - 1,
        }
    }

    /// The next order or bad line; `None` at the end.
    pub fn next(&mut self) -> io::Result<Option<Item>> {
        match self {
            Self::Lines { name, reader, line } => {
                next_line(reader, line).map_err(|problem| cannot_read(name, &problem))
            }
            Self::MadeUp { next, last, seed } => {
                let order = (*next <= *last).then(|| made_up(*next, *seed));
                *next += 1;
                Ok(order.map(Item::Order))
            }
        }
    }
}

/// Reads bytes, not text: a line that is not UTF-8 must not end the whole file.
fn next_line(reader: &mut dyn BufRead, line: &mut u64) -> io::Result<Option<Item>> {
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes)? == 0 {
            return Ok(None);
        }
        *line += 1;
        if !bytes.trim_ascii().is_empty() {
            break;
        }
    }
    let item = match parse(&bytes) {
        Ok(order) => Item::Order(order),
        Err(why) => Item::BadLine(why),
    };
    Ok(Some(item))
}

fn parse(bytes: &[u8]) -> Result<Order, String> {
    let text = std::str::from_utf8(bytes).map_err(|problem| problem.to_string())?;
    let order: Order = serde_json::from_str(text.trim()).map_err(|problem| problem.to_string())?;
    if order.quantity == 0 {
        return Err("quantity is 0: nothing is ordered".into());
    }
    Ok(order)
}

/// The order of that number: always the same for the same seed.
fn made_up(id: u64, seed: u64) -> Order {
    let mut dice = Dice::new(seed, id);
    let (item, price) = PRICE_LIST[dice.below(4)];
    let quantity = dice.below(3) as u32 + 1;
    let card = match dice.below(100) {
        0..3 => Card::Expired,
        3 => Card::Stolen,
        _ => Card::Good,
    };
    let customer = format!("customer-{}@example.org", dice.below(500));
    Order { id, customer, item: item.into(), quantity, cents: price * u64::from(quantity), card }
}

/// Chance that depends on nothing but its seeds (SplitMix64).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64, of: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ of.wrapping_mul(0xd1b5_4a32_d192_ed03))
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}
