//! Counts the lines, words and bytes of what it reads, as `wc` does.

use std::io::{self, Read};

fn main() -> io::Result<()> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    println!("{} {} {}", text.lines().count(), text.split_whitespace().count(), text.len());
    Ok(())
}
