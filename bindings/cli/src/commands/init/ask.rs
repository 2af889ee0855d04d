//! Questions to a person at a terminal.

use std::io::{BufRead, Write};

use anabranch::{Error, Result};

/// Asks on one stream and reads the answers from another.
pub(super) struct Ask<R, W> {
    from: R,
    to: W,
}

impl<R: BufRead, W: Write> Ask<R, W> {
    pub(super) fn new(from: R, to: W) -> Self {
        Self { from, to }
    }

    /// Says something that is no question.
    pub(super) fn say(&mut self, text: &str) {
        let _ = writeln!(self.to, "{text}");
    }

    /// An answer that is not empty, or the default.
    pub(super) fn text(&mut self, question: &str, default: Option<&str>) -> Result<String> {
        loop {
            let shown = default.map_or_else(String::new, |d| format!(" [{d}]"));
            let answer = self.answer(&format!("{question}{shown}: "))?;
            match (answer.as_str(), default) {
                ("", Some(default)) => return Ok(default.to_owned()),
                ("", None) => {}
                _ => return Ok(answer),
            }
        }
    }

    /// Yes, unless the answer is no.
    pub(super) fn yes(&mut self, question: &str) -> Result<bool> {
        loop {
            match self.answer(&format!("{question} [Y/n]: "))?.to_lowercase().as_str() {
                "" | "y" | "yes" => return Ok(true),
                "n" | "no" => return Ok(false),
                _ => self.say("y or n"),
            }
        }
    }

    fn answer(&mut self, question: &str) -> Result<String> {
        let _ = write!(self.to, "{question}");
        let _ = self.to.flush();
        let mut line = String::new();
        match self.from.read_line(&mut line) {
            Ok(0) => Err(Error::config("init", "no answer came").hint("give the answers as flags: see --help")),
            Ok(_) => Ok(line.trim().to_owned()),
            Err(e) => Err(Error::config("init", "the answer cannot be read").because(e)),
        }
    }
}
