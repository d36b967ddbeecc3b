//! The command line.

pub const HELP: &str = "\
usage: shop [FILE | -] [--orders N] [--seed S] [--threads] [--database PATH | --durable PATH]

  FILE         read orders from this file, one JSON object a line
  -            read them from standard input
  --orders N   make up N orders instead (default 2000, at most 1000000)
  --seed S     chooses the made-up orders and the gateway's bad moments (default 1)
  --threads    run on threads and the real clock, a minute in 100 ms; without it, the shop
               runs on one thread in virtual time, the same way for the same seed
  --database PATH
               keep the orders in this SQLite file, which is made if it is not there; without it, in
               one that is removed at the end. If the shop is killed, run it again on the same file:
               what is not finished comes first. (Only if built with --features sqlite,json)
  --durable PATH
               keep everything in this file: the orders, the queues, and what the modules know. If the
               shop is killed, run it again on the same file: each order goes on where it was. (Only if
               built with --features sqlite,json; at most 20000 made-up orders)
  --help       show this

A line looks like this; card is good, expired or stolen, items are kettle, lamp, chair and teapot:

  {\"id\":1,\"customer\":\"ann@example.org\",\"item\":\"kettle\",\"quantity\":2,\"cents\":5980,\"card\":\"good\"}

Exit code 0: the books balance (lines that are no order are reported and skipped).
Exit code 2: bad arguments, orders that cannot be read, or a database or file that cannot be used.
Any other: the books do not balance.
";

pub enum Command {
    Help,
    Run(Args),
}

pub struct Args {
    pub source: Source,
    pub seed: u64,
    pub threads: bool,
    pub database: Option<String>,
    pub durable: Option<String>,
}

pub enum Source {
    File(String),
    Stdin,
    MadeUp { orders: u64, seed: u64 },
}

pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Command, String> {
    let (mut input, mut orders, mut seed, mut threads, mut database, mut durable) = (None, None, 1, false, None, None);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--help" | "-h" => return Ok(Command::Help),
            "--orders" => orders = Some(number(&arg, args.next())?),
            "--seed" => seed = number(&arg, args.next())?,
            "--threads" => threads = true,
            "--database" => database = Some(args.next().ok_or("--database needs a file name")?),
            "--durable" => durable = Some(args.next().ok_or("--durable needs the path of one file")?),
            flag if flag.starts_with("--") => return Err(format!("unknown argument {flag}")),
            _ if input.is_some() => return Err(format!("one file at a time: {arg} is one too many")),
            "-" => input = Some(Source::Stdin),
            _ => input = Some(Source::File(arg)),
        }
    }
    if database.is_some() && durable.is_some() {
        return Err("--durable keeps the orders in its own file; it does not go with --database".into());
    }
    if durable.is_some() && !cfg!(feature = "sqlite") {
        return Err("--durable needs the feature: cargo run --features sqlite,json ...".into());
    }
    if let (Some(orders @ 20_001..), true) = (orders, durable.is_some()) {
        return Err(format!("--orders {orders}: at most 20000 with --durable"));
    }
    let source = match (input, orders) {
        (Some(_), Some(_)) => return Err("--orders makes up orders; it does not go with a file".into()),
        (Some(input), None) => input,
        (None, Some(orders)) if orders > 1_000_000 => return Err(format!("--orders {orders}: at most 1000000")),
        (None, orders) => Source::MadeUp { orders: orders.unwrap_or(2_000), seed },
    };
    Ok(Command::Run(Args { source, seed, threads, database, durable }))
}

fn number(flag: &str, value: Option<String>) -> Result<u64, String> {
    let value = value.ok_or_else(|| format!("{flag} needs a number"))?;
    value.parse().map_err(|problem| format!("{flag} {value}: {problem}"))
}
