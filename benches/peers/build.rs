//! Hands the compiler's own version line to the report.

use std::{env, process::Command};

fn main() {
    let rustc = env::var("RUSTC").expect("cargo sets RUSTC");
    let output = Command::new(rustc).arg("--version").output();
    let version = output.expect("rustc runs").stdout;
    let version = String::from_utf8(version).expect("rustc prints UTF-8");
    println!("cargo::rustc-env=RUSTC_VERSION={}", version.trim());
    println!("cargo::rerun-if-changed=build.rs");
}
