//! What every verb works with: the client, the namespace, and an output that knows when its reader has left.

use std::io::{self, Write};

use api::Timestamp;
use client::Client;

use super::Globals;
use super::error::Error;

/// What every verb works with.
#[derive(Debug)]
pub struct Context {
    /// The way to the daemon.
    pub client: Client,
    /// The namespace on the command line, if any.
    pub chosen: Option<String>,
}

impl Context {
    /// From the flags of every verb.
    pub fn new(globals: &Globals) -> Context {
        Context { client: Client::new(globals.socket()), chosen: globals.namespace.clone() }
    }

    /// The namespace to look in.
    pub fn namespace(&self) -> &str {
        self.chosen.as_deref().unwrap_or("default")
    }

    /// The present, for ages.
    pub fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// Writes a line to standard output.
    ///
    /// # Errors
    /// `PipeClosed` if nobody reads any more.
    pub fn line(&self, text: impl std::fmt::Display) -> Result<(), Error> {
        self.text(&format!("{text}\n"))
    }

    /// Writes to standard output, at once.
    ///
    /// # Errors
    /// `PipeClosed` if nobody reads any more.
    pub fn text(&self, text: &str) -> Result<(), Error> {
        self.bytes(text.as_bytes())
    }

    /// Writes to standard output, at once.
    ///
    /// # Errors
    /// `PipeClosed` if nobody reads any more.
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut out = io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Error::PipeClosed,
            _ => Error::io("write output", error),
        })
    }

    /// Tells the user something that is not output.
    pub fn note(&self, text: impl std::fmt::Display) {
        // Who closed standard error does not want to know.
        _ = writeln!(io::stderr(), "{text}");
    }

    /// Tells the server's warnings, as kubectl does.
    pub fn warn(&self, warnings: &[String]) {
        for warning in warnings {
            self.note(format_args!("Warning: {warning}"));
        }
    }
}
