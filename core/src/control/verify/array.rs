//! Array literals, `{a,NULL,"b c"}`.

/// The elements of one with one dimension; a `None` among them stands for NULL. `None` for anything else.
pub(super) fn elements(text: &str) -> Option<Vec<Option<String>>> {
    let inner = text.strip_prefix('{')?.strip_suffix('}')?;
    let mut all = Vec::new();
    if inner.is_empty() {
        return Some(all);
    }
    let mut letters = inner.chars().peekable();
    loop {
        let mut element = String::new();
        let quoted = letters.next_if_eq(&'"').is_some();
        loop {
            match letters.peek().copied() {
                Some('"') if quoted => {
                    letters.next();
                    break;
                }
                Some('\\') => {
                    letters.next();
                    element.push(letters.next()?);
                }
                Some(',') | None if !quoted => break,
                None => return None,
                Some('{' | '}' | '"') if !quoted => return None,
                Some(letter) => {
                    letters.next();
                    element.push(letter);
                }
            }
        }
        all.push((quoted || !element.eq_ignore_ascii_case("null")).then_some(element));
        match letters.next() {
            None => return Some(all),
            Some(',') => {}
            Some(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_quotes() {
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(elements("{}"), Some(vec![]));
        assert_eq!(elements(r#"{a,NULL,"NULL","b c","\"\\",""}"#).unwrap().len(), 6);
        assert_eq!(elements(r#"{"\"\\",null}"#), Some(vec![some("\"\\"), None]));
        for bad in ["", "{", "a", "{{a}}", "{\"a}", "{\"a\"b}", "{a\\}"] {
            assert_eq!(elements(bad), None, "{bad}");
        }
    }
}
