//! What the examples do with their arguments when they take none.

use std::process::exit;

/// `--help` shows the header of the example's own source; any other argument is an error, so that nobody
/// believes it has done something.
#[allow(dead_code)] // some take one
pub fn takes_no_arguments(source: &str) {
    if let Some(argument) = std::env::args().nth(1) {
        answer(source, &argument);
    }
}

/// To an argument that is not one of the example's own.
pub fn answer(source: &str, argument: &str) -> ! {
    let path = std::env::args().next().unwrap_or_default();
    let name = std::path::Path::new(&path).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    if !matches!(argument, "--help" | "-h") {
        eprintln!("{name}: unknown argument {argument}: see --help");
        exit(2);
    }
    println!("usage: {name}\n");
    let header = source.lines().map_while(|line| line.strip_prefix("//!"));
    header.for_each(|line| println!("{}", line.strip_prefix(' ').unwrap_or(line)));
    exit(0);
}
