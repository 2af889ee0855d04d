//! A place in the files of a shard.

use anabranch_core::{Error, Position, Result};

/// What resumes a reader: `{number}:{line}:{name}` of a file and of how many of its lines are done, or
/// `{number}:end:{name}`. Empty: before the first file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Token {
    /// The file's number in its shard.
    pub(crate) number: u64,
    /// How many of its lines are behind this place; `None`: all.
    pub(crate) line: Option<u64>,
    /// Its name in the folder of the shard.
    pub(crate) name: String,
}

impl Token {
    /// Before the line after the first `line` ones of this file.
    pub(crate) fn at(number: u64, line: u64, name: &str) -> Self {
        Self { number, line: Some(line), name: name.to_owned() }
    }

    /// After this file.
    pub(crate) fn end(number: u64, name: &str) -> Self {
        Self { number, line: None, name: name.to_owned() }
    }

    /// Of a position that this source gave.
    pub(crate) fn of(position: &Position) -> Result<Self> {
        if position.token.is_empty() {
            return Ok(Self::default());
        }
        let text = std::str::from_utf8(&position.token).ok();
        let parse = |text: &str| {
            let (number, rest) = text.split_once(':')?;
            let (line, name) = rest.split_once(':')?;
            let line = if line == "end" { None } else { Some(line.parse().ok()?) };
            let number = number.parse().ok().filter(|n| *n > 0)?;
            (!name.is_empty()).then(|| Self { number, line, name: name.to_owned() })
        };
        text.and_then(parse).ok_or_else(|| Error::fatal("this position is not one of window files"))
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        match self.line {
            _ if self.name.is_empty() => Vec::new(),
            Some(line) => format!("{}:{line}:{}", self.number, self.name).into_bytes(),
            None => format!("{}:end:{}", self.number, self.name).into_bytes(),
        }
    }

    /// Whether everything of the file with this name is behind this place.
    pub(crate) fn is_past(&self, name: &str) -> bool {
        name < self.name.as_str() || (self.line.is_none() && name == self.name)
    }

    /// For people.
    pub(crate) fn shown(&self) -> String {
        match self.line {
            Some(line) => format!("{} line {line}", self.name),
            None => self.name.clone(),
        }
    }
}
