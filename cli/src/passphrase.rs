//! Asking for a passphrase on the terminal, without echo. Whether one is needed is the node's to know.

use std::{
    io::{self, IsTerminal},
    path::Path,
};

use shoal_node::{Class, Failure};
use zeroize::Zeroizing;

use crate::text::clean;

/// Whether somebody sits there who could be asked.
pub(crate) fn may_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks for the passphrase of the store in a directory; twice for a new one.
pub(crate) fn ask(dir: &Path, new: bool) -> Result<Zeroizing<String>, Failure> {
    let dir = clean(&dir.display().to_string());
    if !new {
        return read(&format!("Passphrase of {dir}: "));
    }
    let first = read(&format!("New passphrase for {dir} (without it, what the store keeps is lost): "))?;
    let second = read("The same again: ")?;
    if first != second {
        return Err(Failure::new(Class::Usage, "the two passphrases differ", "run the same command again"));
    }
    Ok(first)
}

fn read(prompt: &str) -> Result<Zeroizing<String>, Failure> {
    rpassword::prompt_password(prompt).map(Zeroizing::new).map_err(|error| match error.kind() {
        io::ErrorKind::Interrupted => Failure::interrupted(),
        _ => {
            let message = format!("cannot read a passphrase from the terminal: {error}");
            Failure::new(Class::Home, message, "give it by SHOAL_PASSPHRASE_FILE")
        }
    })
}
