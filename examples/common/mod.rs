//! What the examples do with their arguments when they take none.

use std::process::exit;

/// `--help` shows the header of the example's own source; any other argument is an error, so that nobody
/// believes it has done something.
pub fn takes_no_arguments(source: &str) {
    let mut args = std::env::args();
    let path = args.next().unwrap_or_default();
    let name = std::path::Path::new(&path).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    match args.next().as_deref() {
        None => {}
        Some("--help" | "-h") => {
            println!("usage: {name}\n");
            let header = source.lines().map_while(|line| line.strip_prefix("//!"));
            header.for_each(|line| println!("{}", line.strip_prefix(' ').unwrap_or(line)));
            exit(0);
        }
        Some(other) => {
            eprintln!("{name}: unknown argument {other}: it takes none, or --help");
            exit(2);
        }
    }
}
