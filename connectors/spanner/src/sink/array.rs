//! PostgreSQL's array literals.

/// The elements of `{a,NULL,"b c"}`, `None` for NULL.
///
/// # Errors
/// A sentence: for nested arrays, which Spanner does not have, for bounds that are not 1, and for
/// what is no literal.
pub(crate) fn elements(text: &str) -> Result<Vec<Option<String>>, String> {
    if text.starts_with('[') {
        return Err("its index does not begin at 1, which Spanner cannot keep".to_owned());
    }
    let malformed = || format!("{text:?} is no array");
    let inside = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).ok_or_else(malformed)?;
    let mut elements = Vec::new();
    if inside.is_empty() {
        return Ok(elements);
    }
    let mut letters = inside.chars().peekable();
    loop {
        let mut element = String::new();
        let mut quoted = false;
        match letters.peek() {
            Some('{') => return Err("it has more than one dimension, which Spanner's arrays do not".to_owned()),
            Some('"') => {
                quoted = true;
                letters.next();
                loop {
                    match letters.next().ok_or_else(malformed)? {
                        '"' => break,
                        '\\' => element.push(letters.next().ok_or_else(malformed)?),
                        letter => element.push(letter),
                    }
                }
            }
            _ => {
                while let Some(letter) = letters.next_if(|l| *l != ',') {
                    element.push(if letter == '\\' { letters.next().ok_or_else(malformed)? } else { letter });
                }
            }
        }
        let null = !quoted && element.eq_ignore_ascii_case("null");
        elements.push((!null).then_some(element));
        match letters.next() {
            None => return Ok(elements),
            Some(',') => {}
            Some(_) => return Err(malformed()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals() {
        let some = |t: &str| Some(t.to_owned());
        assert_eq!(elements("{}").unwrap(), []);
        assert_eq!(
            elements(r#"{a,NULL,"NULL","","x, y","q\"\\",null}"#).unwrap(),
            [some("a"), None, some("NULL"), some(""), some("x, y"), some("q\"\\"), None]
        );
        for bad in ["", "{", "a,b", "{\"a}", "{\"a\"b}", "[0:1]={1,2}", "{{1},{2}}"] {
            assert!(elements(bad).is_err(), "{bad}");
        }
    }
}
