//! Texts that are longer than a value of Spanner's may be: kept in several rows.
//!
//! A text that is short enough is stored as it is. Of a longer one the row itself has
//! `pieces:COUNT:TOKEN:` and the first piece, and further rows of the same table have `TOKEN:` and a piece
//! each. All of them are written in one transaction, and the token tells those of one text from those of the
//! one that replaced it. What is stored here is JSON, which begins otherwise.

use anabranch_core::{Error, Result};

/// Bytes of a piece. A STRING has 2,621,440 characters at most (Spanner's documentation, "Quotas and limits").
const PIECE: usize = 2_000_000;

/// How often a text is read that is replaced while it is read.
pub(crate) const TRIES: usize = 20;

const HEAD: &str = "pieces:";

/// The text of the row itself, and those of the further rows.
pub(crate) fn split(text: String) -> (String, Vec<String>) {
    if text.len() <= PIECE {
        return (text, Vec::new());
    }
    let token = format!("{:016x}", rand::random::<u64>());
    let (mut pieces, mut rest) = (Vec::new(), text.as_str());
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.floor_char_boundary(PIECE));
        pieces.push(piece);
        rest = after;
    }
    let first = format!("{HEAD}{}:{token}:{}", pieces.len(), pieces[0]);
    (first, pieces[1..].iter().map(|piece| format!("{token}:{piece}")).collect())
}

/// How many further rows a text has, by the row itself.
pub(crate) fn further(text: &str) -> usize {
    head(text).map_or(0, |(count, _, _)| count.saturating_sub(1))
}

/// The whole text; `None` if the further rows are of another one.
///
/// # Errors
/// `Fatal` if it is damaged.
pub(crate) fn join(text: &str, further: &[&str]) -> Result<Option<String>> {
    let Some((count, token, first)) = head(text) else {
        return match text.starts_with(HEAD) {
            true => Err(Error::fatal("a text in several rows is damaged")),
            false => Ok(Some(text.to_owned())),
        };
    };
    if further.len() + 1 < count {
        return Ok(None);
    }
    let mut whole = first.to_owned();
    for piece in &further[..count - 1] {
        match piece.split_once(':') {
            Some((of, piece)) if of == token => whole.push_str(piece),
            _ => return Ok(None),
        }
    }
    Ok(Some(whole))
}

fn head(text: &str) -> Option<(usize, &str, &str)> {
    let (count, rest) = text.strip_prefix(HEAD)?.split_once(':')?;
    let (token, first) = rest.split_once(':')?;
    Some((count.parse().ok().filter(|n| *n > 1)?, token, first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_comes_back_whole_or_not_at_all() {
        let short = String::from("{}");
        assert_eq!(split(short.clone()), (short, Vec::new()));
        assert_eq!(join("{}", &[]).unwrap().as_deref(), Some("{}"));
        let text = format!("{{{}}}", "ä:".repeat(1_500_000));
        let (first, rest) = split(text.clone());
        assert_eq!(further(&first), rest.len());
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        assert_eq!(join(&first, &rest).unwrap(), Some(text.clone()));
        assert_eq!(join(&first, &rest[1..]).unwrap(), None);
        let (_, other) = split(text);
        let other: Vec<&str> = other.iter().map(String::as_str).collect();
        assert_eq!(join(&first, &other).unwrap(), None);
        assert!(join("pieces:x", &[]).is_err());
    }
}
