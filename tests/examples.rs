//! Every example holds what it promises: it ends well, in time, and says what its header announces.
//!
//! `cargo test` builds the examples. With `--test examples` alone it does not; what is missing or older than
//! its source is built here then.

use std::fs;
#[cfg(feature = "sqlite")]
use std::io::{BufRead, BufReader};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// Far more than any needs, even unoptimised on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);

const GOOD: &str = r#"{"id":ID,"customer":"ann@example.org","item":"kettle","quantity":1,"cents":2990,"card":"good"}"#;

#[test]
fn decoupling_holds() {
    run("01_decoupling", &[], "").succeeds().says(&[
        "0 of 100 orders placed, yet stock is reserved",
        "1000 of 1000 orders placed",
        "a fifth module, recommendations, joined",
        "1000 redriven, 1000 sent",
        "shut down: nothing left",
    ]);
}

#[test]
fn asynchronous_processing_holds() {
    run("02_async_processing", &[], "").succeeds().says(&[
        "workers transcoded",
        "1499 users were told",
        "attempt 3: panicked: encoder crashed on video 13",
        "encoder fixed, 1 redriven",
        "shut down: nothing left",
    ]);
}

#[test]
fn traffic_shaping_holds() {
    run("03_traffic_shaping", &[], "").succeeds().says(&[
        "1000 x yours",
        "x busy, come again in",
        "x sold out",
        "The database has 1000 orders",
        "in the fullest 100 ms, of 50 allowed",
        "shut down: nothing left",
        "10000 orders a minute over 50 workers",
        "17 in the fullest 100 ms, of 16.7 allowed",
    ]);
}

#[test]
fn delayed_messages_hold() {
    run("08_delayed", &[], "").succeeds().says(&[
        "650 paid in time, each cancelled its timer",
        "350 cancelled, 100 of them paid too late",
        "order 1, 1800s after it was placed",
        "all three came at the same moment",
        "polling, 60s",
        "timers               0.0s       0.0s          0          350",
        "never early; late by",
    ]);
}

#[test]
#[cfg(feature = "sqlite")]
fn data_sync_holds() {
    let copies_are_equal = [
        "killed right after a commit: 7",
        "killed: 9",
        "shut down: nothing left",
        "old versions",
        "Both copies equal the source: 150 users",
    ];
    run("04_data_sync", &[], "").succeeds().says(&copies_are_equal);
    run("04_data_sync", &["--frobnicate"], "").ends_with(2).complains(&["usage: 04_data_sync"]);
    if let (true, Ok(url)) = (cfg!(feature = "postgres"), std::env::var("POSTROOM_TEST_POSTGRES")) {
        run("04_data_sync", &["--postgres", &url], "").succeeds().says(&copies_are_equal).says(&["in PostgreSQL"]);
    }
}

#[test]
fn broadcast_holds() {
    run("06_broadcast", &[], "").succeeds().says(&[
        "5 nodes x 2000 changes seen, all caches equal",
        "equal after 40 messages, not 2000",
        "one joined in the middle of the changes: its cache is equal",
        "told that it missed 90, went on with the last 10",
        "\"hung node\" was cut off from \"settings\"",
        "the node saw all 100",
        "3 drivers got all 200 jobs, the one that hung up 20",
        "Shut down: nothing left",
    ]);
}

#[test]
fn order_holds() {
    run("07_ordered", &[], "").succeeds().says(&[
        "with 8 at work:",
        "steps came out of order",
        "before its second attempt, 1999 of 2000 orders are done",
        "parked: order 42 with 2 steps, after 4 attempts: the carrier does not answer",
        "order 42 released: all 2000 orders are done, none out of order",
    ]);
}

#[test]
fn log_collection_holds() {
    run("05_log_collection", &[], "").succeeds().says(&[
        "logged       40000 lines",
        "0 lines cut, 0 with bytes that are no text",
        "The alerter has seen 2360 errors and raised 8 alerts",
        "20 of the latest 100 lines are errors, at line 2020",
        "5006 words from 40000 lines",
        "\"error\" is in 2360 of them",
        "0:0 web-",
        ", line 1: ERROR request 0 took",
        "replayed     40000 lines",
        "of 40000 lines",
        "offset 0 has been trimmed, the oldest is",
        "shut down: nothing left",
    ]);
}

#[test]
fn log_collection_reads_whatever_is_in_a_file() {
    let odd = written("odd.log", b"an ERROR\r\n\xff\xfe is no text \xc3(\n\nlast line without an end");
    let endless = written("endless.log", &vec![b'x'; 1 << 20]);
    let empty = written("empty.log", b"");
    let binary: Vec<u8> = (0..200_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let binary = written("binary.log", &binary);
    let [odd, endless, empty, binary] = [&odd, &endless, &empty, &binary].map(|path| path.to_str().unwrap());
    run("05_log_collection", &[odd, endless, empty], "").succeeds().says(&[
        "three groups read: 3",
        "archived         5 lines",
        "1 lines cut, 1 with bytes that are no text",
        "1 errors and raised 0 alerts",
        "\"error\" is in 1 of them",
        "shut down: nothing left",
    ]);
    run("05_log_collection", &[binary], "").succeeds().says(&["0 lines cut", "shut down: nothing left"]);
    run("05_log_collection", &[empty], "").succeeds().says(&["archived         0 lines"]);
    run("05_log_collection", &["-"], "one\ntwo\n").succeeds().says(&["archived         2 lines"]);
}

#[test]
fn log_collection_alerts_once_per_bad_while() {
    let line = |n: usize| if (300..400).contains(&n) || (700..730).contains(&n) { "FATAL\n" } else { "fine\n" };
    let lines: String = (0..1_000).map(line).collect();
    run("05_log_collection", &["-"], &lines).succeeds().says(&[
        "130 errors and raised 2 alerts",
        "-: 20 of the latest 100 lines are errors, at line 320",
        "-: over, at line 491",
        "-: 20 of the latest 100 lines are errors, at line 720",
        "-: over, at line 821",
    ]);
}

#[test]
fn log_collection_says_what_it_cannot_read() {
    let directory = env!("CARGO_TARGET_TMPDIR");
    let good = written("good.log", b"a line\n");
    let good = good.to_str().unwrap();
    for (args, complaint) in [
        (&[good, "no/such/file.log"][..], "cannot read no/such/file.log"),
        (&[directory], "it is a directory"),
        (&["--frobnicate"], "unknown argument --frobnicate"),
        (&[good, good], "is given twice"),
        (&["-", "-"], "- is given twice"),
    ] {
        run("05_log_collection", args, "").ends_with(2).complains(&["05_log_collection: ", complaint]);
    }
    run("05_log_collection", &["--help"], "").succeeds().says(&["usage: 05_log_collection", "Exit code 2"]);
}

#[test]
fn examples_without_arguments_refuse_any_and_show_their_header() {
    for example in [
        "01_decoupling",
        "02_async_processing",
        "03_traffic_shaping",
        "06_broadcast",
        "07_ordered",
        "08_delayed",
        "09_retry",
        "10_transactions",
        "message_bus",
        "data_hub",
    ] {
        for args in [&["--frobnicate"][..], &["file"], &["", "--help"]] {
            run(example, args, "").ends_with(2).complains(&[example, "unknown argument", "--help"]);
        }
        let usage = format!("usage: {example}");
        run(example, &["--help"], "").succeeds().says(&[&usage, "**Situation.**", "**What to expect on screen.**"]);
    }
}

#[test]
fn retry_holds() {
    run("09_retry", &[], "").succeeds().says(&[
        "6 attempts, 200ms doubling to 30s, jitter up to 50%",
        "order 77 was charged, crashed, was delivered again, and was charged once",
        "40 x attempts exhausted: bank does not answer",
        "10 x permanent failure: card expired",
        "10 redriven with a new card",
        "390 charged",
    ]);
}

#[test]
fn transactions_hold() {
    run("10_transactions", &[], "").succeeds().says(&[
        "billed are orders 1 and 4",
        "a second time: no half message of id 5000 is open",
        "told first :",
        "  0 of them lost, 156 invented",
        "105 of them lost,   0 invented",
        "half message: 844 saved,   0 of them lost,   0 invented",
        "transaction unresolved after 15 check-backs, kept",
        "neither is, since operation 1, for queue \"shipments\": \"shipments\" is full",
    ]);
    run("10_transactions", &["--seed", "7"], "").succeeds();
    for seed in [&["--seed"][..], &["--seed", "many"]] {
        run("10_transactions", seed, "").ends_with(2).complains(&["10_transactions: --seed needs a number"]);
    }
}

#[test]
fn the_message_bus_holds() {
    run("message_bus", &[], "").succeeds().says(&[
        "no binding of topic \"counter\" matches",
        "2000 wishes answered",
        "ticket 7 was paid before",
        "panicked: crashed: the safe does not open",
        "no reply within 50ms",
        "late replies: 1",
        "the request was left behind by queue \"pay-out\"",
    ]);
}

#[test]
fn the_data_hub_holds() {
    run("data_hub", &[], "").succeeds().says(&[
        "[warehouse] circuit open",
        "[warehouse] circuit closed",
        "all three stores equal the source: 500 products",
        "shut down: nothing left",
    ]);
}

#[test]
fn the_shop_balances_its_books() {
    run("shop", &[], "")
        .succeeds()
        .says(&[
            "2000 made up with seed 1",
            "p99",
            "17 x payment  permanent failure: card reported stolen",
            "17 were not paid within 30 minutes and are cancelled",
            "The books balance: 2000 orders placed, 1751 paid, 249 unsolved",
        ])
        .complains(&["panicked: crashed after charging order 777"]);
    run("shop", &["--orders", "0"], "").succeeds().says(&["The books balance: 0 orders"]);
}

#[test]
fn the_shop_ships_in_order_asks_around_and_reads_its_journal_again() {
    run("shop", &[], "").succeeds().says(&[
        "parcels: order 500 is stuck, all others go on",
        "goes on: parcel of order 500 with 2 steps, after the taping machine is jammed",
        "stock says: 61 x lamp",
        "prices says: 49.00 each",
        "27 customers take the offer",
        "no binding of topic \"questions\" matches routing key \"gift.wrap\"",
        "all modules know the 5 settings of the office",
        "order.shipped    1751",
        "the tax office has read all 7287 events from the start",
        "of them happened after the repair",
    ]);
}

#[test]
fn the_shop_is_the_same_for_the_same_seed() {
    let figures = |run: Run| {
        // What comes before says how long it took.
        run.succeeds().stdout.split_once("2. Unsolved").expect("it says so").1.to_owned()
    };
    assert_eq!(figures(run("shop", &["--seed", "5"], "")), figures(run("shop", &["--seed", "5"], "")));
}

#[test]
fn the_shop_survives_a_rush_and_an_outage() {
    run("shop", &[], "").succeeds().says(&[
        "1950 customers were told at once that we are busy, to come again in 20ms or less, and did",
        "alarm at 500 messages ready raised",
        "payment: 10 of the last 20 calls failed, so none is made for a while",
        "payment: the gateway is still down",
        "payment: the gateway is back",
        "alarm at 500 messages ready cleared",
    ]);
}

#[test]
fn the_shop_balances_its_books_on_threads_too() {
    run("shop", &["--threads"], "").succeeds().says(&["p99", "The books balance: 2000 orders"]);
}

#[test]
fn the_shop_reads_a_file_and_reports_bad_lines() {
    let lines = [
        GOOD.replace("ID", "1").into_bytes(),
        b"not json".to_vec(),
        b"".to_vec(),
        br#"{"id":2,"customer":"bob@example.org"}"#.to_vec(),
        b"\xff\xfe".to_vec(),
        GOOD.replace("ID", "1").into_bytes(),
        GOOD.replace("ID", "3").replace(r#""quantity":1"#, r#""quantity":0"#).into_bytes(),
        GOOD.replace("ID", "4").replace("kettle", "spoon").into_bytes(),
        GOOD.replace("ID", "5").replace("good", "stolen").into_bytes(),
        GOOD.replace("ID", "6").replace("good", "expired").into_bytes(),
    ];
    let path = written("orders.jsonl", &lines.join(&b"\r\n"[..]));
    run("shop", &[path.to_str().unwrap()], "")
        .succeeds()
        .says(&[
            "4 orders placed",
            "5 bad lines skipped",
            "permanent failure: no such item: spoon",
            "permanent failure: card reported stolen",
            "The books balance: 4 orders placed, 2 paid, 2 unsolved",
        ])
        .complains(&[
            "line 2: expected",
            "line 4: missing field `item`",
            "line 5: invalid utf-8",
            "line 6: order 1 was placed before",
            "line 7: quantity is 0",
        ]);
}

#[test]
fn the_shop_reads_standard_input() {
    let lines: Vec<String> = (1..=50).map(|id| GOOD.replace("ID", &id.to_string())).collect();
    run("shop", &["-"], &lines.join("\n")).succeeds().says(&[
        "JSON lines from standard input",
        "50 orders placed",
        "0 bad lines",
        "50 paid, 0 unsolved",
    ]);
    run("shop", &["-"], "").succeeds().says(&["The books balance: 0 orders placed"]);
}

#[test]
fn the_shop_says_what_it_cannot_read() {
    run("shop", &["no/such/file.jsonl"], "").ends_with(2).complains(&["cannot read no/such/file.jsonl"]);
    run("shop", &[env!("CARGO_TARGET_TMPDIR")], "").ends_with(2).complains(&["cannot read"]);
}

#[test]
fn the_shop_refuses_arguments_it_does_not_know() {
    for (args, complaint) in [
        (&["--frobnicate"][..], "unknown argument --frobnicate"),
        (&["--orders"], "--orders needs a number"),
        (&["--orders", "many"], "--orders many: invalid digit"),
        (&["--orders", "1000001"], "at most 1000000"),
        (&["a", "b"], "one file at a time"),
        (&["--database"], "--database needs a file name"),
        (&["--durable"], "--durable needs the path of one file"),
        (&["-", "--orders", "5"], "does not go with a file"),
    ] {
        run("shop", args, "").ends_with(2).complains(&[complaint, "usage: shop"]);
    }
    run("shop", &["--help"], "").succeeds().says(&[
        "usage: shop",
        "--threads",
        "--database",
        "--durable",
        "Exit code 2",
    ]);
}

#[test]
#[cfg(not(feature = "sqlite"))]
fn the_shop_without_a_database_says_how_to_get_one() {
    run("shop", &["--orders", "3"], "").succeeds().says(&[
        "no database: what is placed dies with the process",
        "cargo run --release --features sqlite,json --example shop",
        "The books balance: 3 orders placed, 3 paid",
    ]);
    run("shop", &["--database", "shop.db"], "").ends_with(2).complains(&["built without one"]);
    run("shop", &["--durable", "shop.db"], "").ends_with(2).complains(&["cargo run --features sqlite,json"]);
}

#[cfg(feature = "sqlite")]
mod shop_with_a_database {
    use super::*;
    use postroom::rusqlite::Connection;

    /// A fresh directory.
    fn directory(name: &str) -> PathBuf {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        path
    }

    fn number(database: &Path, sql: &str) -> i64 {
        Connection::open(database).and_then(|db| db.query_row(sql, [], |row| row.get(0))).unwrap_or(0)
    }

    /// Every sixth card is stolen, so that some orders stay open for a while.
    fn lines(numbers: std::ops::RangeInclusive<u64>) -> String {
        let line = |id: u64| {
            let line = GOOD.replace("ID", &id.to_string());
            if id.is_multiple_of(6) { line.replace("good", "stolen") + "\n" } else { line + "\n" }
        };
        numbers.map(line).collect()
    }

    #[test]
    fn orders_are_placed_in_it_and_counted_there() {
        let temporary = directory("shop-temporary");
        let mut shop = Command::new(built("shop"));
        let output = shop.args(["--orders", "300"]).env("TMPDIR", &temporary).output().unwrap();
        let output = String::from_utf8_lossy(&output.stdout);
        assert!(output.contains("a database of its own, removed at the end"), "{output}");
        assert!(output.contains("In the database: 300 orders, 0 of them finished earlier"), "{output}");
        assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "nothing is left of it");
    }

    #[test]
    fn what_was_committed_when_it_was_killed_is_finished_by_the_next() {
        for mode in [&["--threads"][..], &[]] {
            let database = directory("shop-killed").join("shop.db");
            let args = [&["-", "--database", database.to_str().unwrap()], mode].concat();
            let mut shop = Command::new(built("shop"));
            shop.args(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
            let mut shop = shop.spawn().unwrap();
            // Who looks while the database is being made may be in its way.
            let mut says = BufReader::new(shop.stdout.take().unwrap()).lines().map(Result::unwrap);
            assert!(says.any(|line| line.contains("each is placed when")), "it has ended");
            // It waits for more, in the middle of its day.
            let mut input = shop.stdin.take().unwrap();
            input.write_all(lines(1..=60).as_bytes()).unwrap();
            input.flush().unwrap();
            let start = Instant::now();
            while number(&database, "SELECT count(*) FROM orders") < 60 {
                assert!(start.elapsed() < LIMIT, "60 orders are not placed");
                thread::sleep(Duration::from_millis(1));
            }
            if mode.is_empty() {
                run("shop", &args, "").ends_with(2).complains(&["another shop is at work on it"]);
            }
            shop.kill().unwrap();
            shop.wait().unwrap();

            let open = number(&database, "SELECT count(*) FROM orders WHERE state = 'open'");
            let next = run("shop", &args, &lines(51..=80)).succeeds();
            let finished_earlier = format!("In the database: 80 orders, {} of them finished earlier", 60 - open);
            next.says(&["20 orders placed, 0 bad lines", "10 were in the database already", &finished_earlier])
                .says(if open > 0 { &["orders placed earlier are not finished and come first"] } else { &[] });
            assert!(open > 0 || !mode.is_empty(), "virtual time stood still");
            let counted =
                |state: &str| number(&database, &format!("SELECT count(*) FROM orders WHERE state = '{state}'"));
            let (shipped, cancelled) = (counted("shipped"), counted("cancelled"));
            assert_eq!(shipped + cancelled, 80, "all are finished");
            // On a busy machine, threads may not come to charge a good card in time.
            assert!((shipped, cancelled) == (67, 13) || !mode.is_empty() && cancelled > 13, "{shipped} {mode:?}");
            run("shop", &args, "").succeeds().says(&["The books balance: 0 orders", "80 of them finished earlier"]);
        }
    }

    #[test]
    fn what_stayed_unsolved_begins_again() {
        let database = directory("shop-again").join("shop.db");
        let database = database.to_str().unwrap();
        let spoon = GOOD.replace("ID", "1").replace("kettle", "spoon");
        for earlier in [false, true] {
            let shop = run("shop", &["-", "--database", database], &spoon).succeeds();
            let shop =
                shop.says(&["1 orders placed, 0 paid, 1 unsolved", "no such item: spoon", "0 cancelled, 1 open"]);
            let words = "1 orders placed earlier are not finished and come first: 0 that nobody had";
            assert_eq!(shop.stdout.contains(words), earlier, "{}", shop.stdout);
        }
    }

    #[test]
    fn a_database_that_cannot_be_used_is_left_alone() {
        let directory = directory("shop-wrong");
        let text = directory.join("text");
        fs::write(&text, "no database, but a text that is longer than the header of a database would be. ".repeat(3))
            .unwrap();
        let others = directory.join("others.db");
        Connection::open(&others).unwrap().execute_batch("CREATE TABLE orders (a)").unwrap();
        let newer = directory.join("newer.db");
        run("shop", &["--orders", "1", "--database", newer.to_str().unwrap()], "").succeeds();
        Connection::open(&newer).unwrap().execute_batch("UPDATE outbox_version SET version = 99").unwrap();
        for (path, complaint) in [
            (directory.clone(), "unable to open database file"),
            (directory.join("no/such.db"), "unable to open database file"),
            (text, "file is not a database"),
            (others, "it is another program's"),
            (newer, "has version 99"),
        ] {
            let before = fs::read(&path).ok();
            let name = path.to_str().unwrap();
            let named = format!("cannot use database {name}");
            run("shop", &["--orders", "5", "--database", name], "").ends_with(2).complains(&[&named, complaint]);
            assert_eq!(fs::read(&path).ok(), before, "{name} is unchanged");
        }
    }

    #[test]
    #[cfg(unix)]
    fn a_database_that_may_only_be_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let database = directory("shop-read-only").join("shop.db");
        run("shop", &["--orders", "1", "--database", database.to_str().unwrap()], "").succeeds();
        fs::set_permissions(&database, fs::Permissions::from_mode(0o444)).unwrap();
        if fs::OpenOptions::new().append(true).open(&database).is_ok() {
            return; // nothing is read-only for root
        }
        let shop = run("shop", &["--orders", "1", "--database", database.to_str().unwrap()], "");
        shop.ends_with(2).complains(&["attempt to write a readonly database"]);
    }
}

#[test]
#[cfg(not(feature = "sqlite"))]
fn examples_that_can_be_durable_say_what_they_lack() {
    for example in ["01_decoupling", "08_delayed", "10_transactions"] {
        run(example, &["--durable", "x.db"], "").ends_with(2).complains(&["cargo run --features sqlite"]);
    }
}

#[cfg(feature = "sqlite")]
mod durable {
    use super::*;
    use postroom::rusqlite::Connection;
    use postroom::store::Durability;
    use postroom::{Broker, Message, Queue};

    /// A folder of its own for a file, and the file.
    fn fresh(name: &str) -> String {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder.join("broker.db").to_str().unwrap().to_owned()
    }

    #[test]
    fn decoupling_goes_on_where_it_was_killed() {
        let (mut file, mut in_time) = (String::new(), false);
        for _ in 0..TRIES {
            file = fresh("decoupling");
            let args = ["--durable", &file];
            let first = start_until("01_decoupling", &args, "recommendations, joined");
            let holder = format!("process {}", first.child.id());
            let refused = run("01_decoupling", &args, "");
            let inspected = run("inspect", &[&file], "");
            // If it still runs, the others have found it at work; on a busy machine it may have come to its end.
            if !first.kill() {
                continue;
            }
            refused.ends_with(2).complains(&["01_decoupling: ", "is in use by", &holder]);
            inspected.succeeds().says(&["held by", &holder, "stock", "dead letters   email.dead"]);
            run("inspect", &[&file], "").succeeds().says(&["held by  nobody"]);
            // Soon after the start, when it has found what was there.
            in_time = start_until("01_decoupling", &args, "found from before").kill();
            if in_time {
                break;
            }
        }
        assert!(in_time, "it always came to its end before anybody could look");
        let args = ["--durable", &file];
        run("01_decoupling", &args, "").succeeds().says(&[
            "found from before: ",
            "in email",
            "orders were placed before, and",
            "shut down: nothing left",
        ]);
        let again = run("01_decoupling", &args, "").succeeds().says(&["received", "1000 redriven, 1000 sent"]);
        assert!(!again.stdout.contains("before,"), "a new beginning: {}", again.stdout);
    }

    #[test]
    fn delays_go_on_where_they_were_killed() {
        let mut file = String::new();
        let in_time = (0..TRIES).any(|_| {
            file = fresh("delayed");
            start_until("08_delayed", &["--durable", &file], "all are on their way").kill()
                && !run("inspect", &[&file, "timers"], "").stdout.contains("queue timers: 0 items")
        });
        assert!(in_time, "all timers always fired before it was killed");
        let args = ["--durable", &file];
        let found = ["found from before: ", " in timers", "never early"];
        run("08_delayed", &args, "").succeeds().says(&found);
        run("inspect", &[&file, "timers"], "").succeeds().says(&["queue timers: 0 items"]);
    }

    #[test]
    fn transactions_go_on_where_they_were_killed() {
        let mut file = String::new();
        let rows_of = |file: &str, table| {
            let count = format!("SELECT count(*) FROM {table}");
            Connection::open(file).unwrap().query_row(&count, [], |row| row.get::<_, i64>(0))
        };
        // Its tables are gone when it has come to its end.
        let in_time = (0..TRIES).any(|_| {
            file = fresh("transactions");
            start_until("10_transactions", &["--durable", &file], "half of them are dealt with").kill()
                && rows_of(&file, "placed").is_ok_and(|placed| {
                    let billed = rows_of(&file, "billed").unwrap();
                    assert!(placed >= 400 && placed >= billed, "{placed} placed, {billed} billed");
                    placed < 844
                })
                // Early, when it has told of what it has found, or while it looks.
                && start_until("10_transactions", &["--durable", &file], "4. The same orders").kill()
                && rows_of(&file, "placed").is_ok()
        });
        assert!(in_time, "it always came to its end before it was killed");
        let args = ["--durable", &file];
        let placed = rows_of(&file, "placed").unwrap();
        run("10_transactions", &args, "").succeeds().says(&[
            &format!("{placed} orders were placed before, and {} now", 844 - placed),
            "one file:     844 saved,   0 of them lost,   0 invented",
        ]);
        // A new beginning, so the seed may be another.
        run("10_transactions", &["--durable", &file, "--seed", "7"], "")
            .succeeds()
            .says(&["0 orders were placed before"]);
    }

    #[test]
    fn the_shop_goes_on_where_it_was_killed() {
        for mode in [&["--threads"][..], &[]] {
            let mut file = String::new();
            let placed_in = |file: &str| {
                let count =
                    |db: Connection| db.query_row("SELECT count(*) FROM orders", [], |row| row.get::<_, i64>(0));
                Connection::open(file).and_then(count).unwrap_or(0)
            };
            let in_time = (0..TRIES).any(|_| {
                file = fresh("shop");
                let args = [&["--orders", "300", "--durable", &file], mode].concat();
                let mut first = start_until("shop", &args, "each is placed when");
                let holder = format!("process {}", first.child.id());
                let refused = run("shop", &args, "");
                let start = Instant::now();
                while placed_in(&file) < 100 && first.runs() {
                    assert!(start.elapsed() < LIMIT, "100 orders are not placed");
                    thread::sleep(Duration::from_millis(1));
                }
                if !first.kill() || placed_in(&file) == 300 {
                    return false;
                }
                refused.ends_with(2).complains(&["shop: ", "is in use by", &holder]);
                // In the middle of all that the first has left.
                start_until("shop", &args, "found from before: ").kill() && placed_in(&file) < 300
            });
            assert!(in_time, "it always came to its end before it was killed");
            let (args, placed) = ([&["--orders", "300", "--durable", &file], mode].concat(), || placed_in(&file));
            let placed_by_then = placed();
            run("shop", &args, "").succeeds().says(&[
                &format!("{placed_by_then} were placed by earlier runs; each goes on where it was"),
                "found from before: ",
                "The books balance: 300 orders placed, ",
                &format!("In the file: 300 orders, {placed_by_then} of them placed by earlier runs"),
            ]);
            let again = run("shop", &args, "").succeeds();
            again.says(&["300 were in the database already", "The books balance: 300 orders placed, "]);
        }
    }

    #[test]
    fn the_shop_says_of_a_file_why_it_cannot_be_used() {
        let text = written("shop-no.db", "words, and more of them. ".repeat(99).as_bytes());
        let many = ["--durable", "a.db", "--orders", "20001"];
        for (args, complaint) in [
            (&["--durable", text.to_str().unwrap()][..], "shop-no.db"),
            (&["--durable", "no/such/folder/a.db"], "no/such/folder"),
            (&["--durable", "a.db", "--database", "b.db"], "does not go with --database"),
            (&many, "at most 20000 with --durable"),
        ] {
            run("shop", args, "").ends_with(2).complains(&["shop: ", complaint]);
        }
    }

    #[test]
    fn those_that_can_be_durable_refuse_what_they_cannot_use() {
        for example in ["01_decoupling", "08_delayed", "10_transactions"] {
            run(example, &["--durable"], "").ends_with(2).complains(&["--durable needs the path"]);
            run(example, &["--durable", "a", "b"], "").ends_with(2).complains(&["--durable needs the path"]);
            run(example, &["--durable", "no/such/folder/a.db"], "").ends_with(2).complains(&["no/such/folder"]);
        }
    }

    #[test]
    fn inspect_shows_items_and_dead_letters_and_changes_nothing() {
        let file = fresh("inspect");
        let broker = Broker::open(&file).unwrap();
        let jobs: Queue<String> = broker.queue("jobs").durable(Durability::Buffered).declare().unwrap();
        for word in ["rotten", "fresh", "\u{1b}[2J", "more"] {
            jobs.send(Message::new(word.to_owned()).with_key("k-7").with_header("tenant", "acme")).unwrap();
        }
        jobs.send(Message::new("later".to_owned()).with_delay(Duration::from_secs(7_000))).unwrap();
        jobs.recv().unwrap().dead_letter("smells").unwrap();
        assert!(broker.shutdown(LIMIT).is_clean());
        let folder = Path::new(&file).parent().unwrap();
        let files = || fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).map(|f| (fs::read(&f).unwrap(), f));
        let before: std::collections::BTreeSet<_> = files().collect();

        run("inspect", &[&file], "").succeeds().says(&[
            "format   4",
            "0 in the log",
            "held by  nobody",
            "\"codec\":\"json\"",
        ]);
        let items = ["queue jobs: 4 items", "key k-7", "tenant: acme", "\"fresh\"", "\\u001b[2J", "due in 1"];
        run("inspect", &[&file, "jobs"], "").succeeds().says(&items);
        run("inspect", &[&file, "jobs", "--limit", "1"], "").succeeds().says(&["and 3 more"]);
        let letter = ["dead letter of jobs", "rejected: smells", "attempts 1", "\"rotten\"", "key k-7"];
        run("inspect", &[&file, "jobs.dead"], "").succeeds().says(&letter);
        assert!(files().collect::<std::collections::BTreeSet<_>>() == before, "something has changed");
    }

    #[test]
    fn inspect_shows_what_could_not_be_decoded() {
        let file = fresh("inspect-undecodable");
        let broker = Broker::open(&file).unwrap();
        let jobs: Queue<String> = broker.queue("jobs").durable(Durability::Buffered).declare().unwrap();
        for word in ["rotten", "17"] {
            jobs.send(Message::new(word.to_owned()).with_key("k-7")).unwrap();
        }
        jobs.recv().unwrap().dead_letter("smells").unwrap();
        assert!(broker.shutdown(LIMIT).is_clean());
        run("inspect", &[&file, "jobs"], "").succeeds().says(&["queue jobs: 1 items", "\"17\""]);
        drop((broker, jobs));
        let broker = Broker::open(&file).unwrap();
        let numbers: Queue<u32> = broker.queue("jobs").durable(Durability::Buffered).declare().unwrap();
        assert_eq!(numbers.undecodable().len(), 2);
        assert!(broker.shutdown(LIMIT).is_clean());

        let shown = [
            "undecodable jobs: 2 items",
            "dead letter of jobs,",
            "dead letter of jobs.dead,",
            ": undecodable, and before that: rejected: smells",
            "last error: invalid type: string \"17\"",
            "version 0 of its type, 4 bytes",
            "key k-7",
        ];
        run("inspect", &[&file, "jobs.undecodable"], "").succeeds().says(&shown);
        run("inspect", &[&file, "jobs"], "").succeeds().says(&["queue jobs: 0 items", "undecodable jobs: 2 items"]);
        run("inspect", &[&file], "").succeeds().says(&["undecodable    jobs "]);
    }

    #[test]
    fn inspect_says_what_it_cannot_read() {
        let file = fresh("inspect-refuses");
        let broker = Broker::open(&file).unwrap();
        let _: Queue<String> = broker.queue("jobs").durable(Durability::Buffered).declare().unwrap();
        drop(broker);
        let text = written("no.db", "words, and more of them. ".repeat(99).as_bytes());
        let other = written("other.db", b"");
        Connection::open(&other).unwrap().execute_batch("CREATE TABLE mine (a)").unwrap();
        let [text, other] = [&text, &other].map(|path| path.to_str().unwrap());
        for (args, complaint) in [
            (&[][..], "which file?"),
            (&["no/such.db"], "there is no file no/such.db"),
            (&["no-such.db"], "there is no file"),
            (&[text], "is not a SQLite database"),
            (&[other], "without anything of postroom"),
            (&[&file, "job"], "no stream \"job\" in it; there are: jobs, jobs.dead"),
            (&[&file, "--limit"], "--limit needs a number"),
            (&[&file, "--limit", "few"], "--limit few: invalid digit"),
            (&[&file, "--frobnicate"], "unknown argument --frobnicate"),
            (&[&file, "jobs", "more"], "one stream at a time"),
        ] {
            run("inspect", args, "").ends_with(2).complains(&["inspect: ", complaint]);
        }
        let sql = "UPDATE postroom_meta SET value = 99 WHERE name = 'format'";
        Connection::open(&file).unwrap().execute_batch(sql).unwrap();
        run("inspect", &[&file], "").ends_with(2).complains(&["has format 99"]);
        run("inspect", &["--help"], "").succeeds().says(&["usage: inspect PATH", "Exit code 2"]);
    }

    /// How often a program is started anew that came to its end before anybody could look at it.
    const TRIES: usize = 10;

    /// A program under way.
    struct Started {
        child: std::process::Child,
        stdout: thread::JoinHandle<()>,
    }

    impl Started {
        /// Whether it was still running.
        fn kill(mut self) -> bool {
            let runs = self.runs();
            self.child.kill().unwrap();
            // One that ended by itself meanwhile was not killed.
            let killed = self.child.wait().unwrap().code().is_none();
            self.stdout.join().unwrap();
            runs && (killed || cfg!(not(unix)))
        }

        fn runs(&mut self) -> bool {
            self.child.try_wait().unwrap().is_none()
        }
    }

    /// Runs an example until it says something.
    fn start_until(example: &str, args: &[&str], words: &'static str) -> Started {
        use std::io::{BufRead, BufReader};
        let mut child = Command::new(built(example)).args(args).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (tell, said) = std::sync::mpsc::channel();
        let watch = move || {
            let told = lines.map_while(Result::ok).filter(|line| line.contains(words));
            told.for_each(|line| _ = tell.send(line));
        };
        let stdout = thread::spawn(watch);
        let started = Started { child, stdout };
        if said.recv_timeout(LIMIT).is_err() {
            started.kill();
            panic!("{example} did not say {words:?}");
        }
        started
    }
}

/// What a program did.
struct Run {
    what: String,
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Run {
    #[track_caller]
    fn succeeds(self) -> Self {
        self.ends_with(0)
    }

    #[track_caller]
    fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}\n{}", self.what, self.stdout, self.stderr);
        self
    }

    #[track_caller]
    fn says(self, words: &[&str]) -> Self {
        self.has(words, &self.stdout);
        self
    }

    #[track_caller]
    fn complains(self, words: &[&str]) -> Self {
        self.has(words, &self.stderr);
        self
    }

    #[track_caller]
    fn has(&self, words: &[&str], output: &str) {
        for words in words {
            assert!(output.contains(words), "{} does not say {words:?}:\n{output}", self.what);
        }
    }
}

/// Runs an example to its end, or kills it at the limit.
#[track_caller]
fn run(example: &str, args: &[&str], input: &str) -> Run {
    let what = format!("{example} {}", args.join(" "));
    let mut command = Command::new(built(example));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().expect("it was built");
    let stdout = read_all(child.stdout.take().unwrap());
    let stderr = read_all(child.stderr.take().unwrap());
    // A program that does not care for its input may be gone before it has been written.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("{what}: not done after {LIMIT:?}, so far:\n{}", stdout.join().unwrap());
        }
        thread::sleep(Duration::from_millis(10));
    };
    Run { what, code: status.code(), stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// Meanwhile, so that the program never waits for a full pipe.
fn read_all(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The program, beside this test: `target/<profile>/deps/this-test`, `target/<profile>/examples/name`.
fn built(example: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    let this_test = std::env::current_exe().unwrap();
    let profile = this_test.ancestors().nth(2).unwrap();
    BUILT.get_or_init(|| build_all(profile));
    profile.join("examples").join(format!("{example}{}", std::env::consts::EXE_SUFFIX))
}

/// What is there already may be older than its sources, or have other features; cargo knows.
fn build_all(profile: &Path) {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--examples", "--target-dir"]).arg(profile.parent().unwrap());
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    if cfg!(feature = "sqlite") {
        cargo.arg("--all-features");
    }
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    assert!(cargo.status().unwrap().success(), "the examples do not build");
}

fn written(name: &str, content: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, content).unwrap();
    path
}
