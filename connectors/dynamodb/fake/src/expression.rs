//! Condition expressions: `attribute_exists`, `attribute_not_exists`, comparisons, AND, OR, NOT and
//! parentheses, on attributes of the top level.

use std::cmp::Ordering;

use serde_json::Value;

use crate::failure::Failure;
use crate::state::Item;

/// Whether a condition holds for what is there now.
pub(crate) fn holds(condition: &str, input: &Value, current: Option<&Item>) -> Result<bool, Failure> {
    let mut reader = Reader { tokens: tokens(condition), at: 0, input, current };
    let result = reader.any()?;
    match reader.tokens.get(reader.at) {
        None => Ok(result),
        Some(token) => Err(Failure::validation(format!("Invalid ConditionExpression: {token}"))),
    }
}

fn tokens(text: &str) -> Vec<String> {
    let mut spaced = String::new();
    for c in text.chars() {
        match c {
            '(' | ')' | ',' => spaced.extend([' ', c, ' ']),
            '<' | '>' => spaced.extend([' ', c]),
            '=' if spaced.ends_with(['<', '>']) => spaced.extend(['=', ' ']),
            '=' => spaced.extend([' ', '=', ' ']),
            c => {
                if spaced.ends_with(['<', '>']) && c != '>' {
                    spaced.push(' ');
                }
                spaced.push(c);
            }
        }
    }
    spaced.replace("< >", "<>").split_whitespace().map(str::to_owned).collect()
}

struct Reader<'a> {
    tokens: Vec<String>,
    at: usize,
    input: &'a Value,
    current: Option<&'a Item>,
}

impl<'a> Reader<'a> {
    fn take(&mut self) -> Result<String, Failure> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token.ok_or_else(|| Failure::validation("Invalid ConditionExpression: it ends too early"))
    }

    fn next_is(&mut self, word: &str) -> bool {
        let is = self.tokens.get(self.at).is_some_and(|t| t.eq_ignore_ascii_case(word));
        self.at += usize::from(is);
        is
    }

    fn any(&mut self) -> Result<bool, Failure> {
        let mut result = self.all()?;
        while self.next_is("OR") {
            result |= self.all()?;
        }
        Ok(result)
    }

    fn all(&mut self) -> Result<bool, Failure> {
        let mut result = self.one()?;
        while self.next_is("AND") {
            result &= self.one()?;
        }
        Ok(result)
    }

    fn one(&mut self) -> Result<bool, Failure> {
        if self.next_is("NOT") {
            return Ok(!self.one()?);
        }
        if self.next_is("(") {
            let result = self.any()?;
            return self.close().map(|()| result);
        }
        let word = self.take()?;
        if word == "attribute_exists" || word == "attribute_not_exists" {
            self.next_is("(");
            let path = self.take()?;
            self.close()?;
            return Ok(self.value(&path)?.is_some() == (word == "attribute_exists"));
        }
        let left = self.value(&word)?;
        let operator = self.take()?;
        let right = self.take()?;
        let right = self.value(&right)?;
        let order = left.zip(right).and_then(|(l, r)| compare(l, r));
        Ok(match operator.as_str() {
            "=" => left.is_some() && left == right,
            "<>" => left != right,
            "<" => order == Some(Ordering::Less),
            "<=" => order.is_some_and(Ordering::is_le),
            ">" => order == Some(Ordering::Greater),
            ">=" => order.is_some_and(Ordering::is_ge),
            other => return Err(Failure::validation(format!("Invalid ConditionExpression: {other}"))),
        })
    }

    fn close(&mut self) -> Result<(), Failure> {
        match self.next_is(")") {
            true => Ok(()),
            false => Err(Failure::validation("Invalid ConditionExpression: a parenthesis is not closed")),
        }
    }

    /// What a placeholder or a name stands for.
    fn value(&self, word: &str) -> Result<Option<&'a Value>, Failure> {
        let undefined = || Failure::validation(format!("Invalid ConditionExpression: {word} is not defined"));
        if word.starts_with(':') {
            return self.input["ExpressionAttributeValues"].get(word).map(Some).ok_or_else(undefined);
        }
        let name = match word.starts_with('#') {
            true => self.input["ExpressionAttributeNames"][word].as_str().ok_or_else(undefined)?,
            false => word,
        };
        Ok(self.current.and_then(|item| item.get(name)))
    }
}

/// The order of two attributes of one type.
fn compare(left: &Value, right: &Value) -> Option<Ordering> {
    let text = |v: &'_ Value, kind: &str| v.get(kind).and_then(Value::as_str).map(str::to_owned);
    if let (Some(l), Some(r)) = (text(left, "N"), text(right, "N")) {
        return l.parse::<f64>().ok()?.partial_cmp(&r.parse::<f64>().ok()?);
    }
    ["S", "B"].into_iter().find_map(|kind| Some(text(left, kind)?.cmp(&text(right, kind)?)))
}
