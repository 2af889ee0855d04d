//! Array literals, `{a,NULL,"b c"}`: the canonical text of arrays, in which sets travel.

/// Writes one element after another.
#[derive(Debug)]
pub(crate) struct ArrayWriter<'a> {
    out: &'a mut String,
    first: bool,
}

impl<'a> ArrayWriter<'a> {
    pub(crate) fn begin(out: &'a mut String) -> Self {
        out.push('{');
        Self { out, first: true }
    }

    /// An element, quoted where it has to be.
    pub(crate) fn push(&mut self, element: &str) {
        if !std::mem::take(&mut self.first) {
            self.out.push(',');
        }
        let plain = !element.is_empty()
            && !element.eq_ignore_ascii_case("null")
            && !element.contains(|c: char| matches!(c, '{' | '}' | ',' | '"' | '\\') || c.is_whitespace());
        if plain {
            return self.out.push_str(element);
        }
        self.out.push('"');
        for c in element.chars() {
            if matches!(c, '"' | '\\') {
                self.out.push('\\');
            }
            self.out.push(c);
        }
        self.out.push('"');
    }

    pub(crate) fn end(self) {
        self.out.push('}');
    }
}

/// The elements of a one-dimensional array literal; `None` stands for NULL. `Err` for anything else.
pub(crate) fn elements(text: &str) -> Result<Vec<Option<String>>, &'static str> {
    let inner = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).ok_or("it is not in braces")?;
    let mut all = Vec::new();
    if inner.is_empty() {
        return Ok(all);
    }
    let mut chars = inner.chars().peekable();
    loop {
        let mut element = String::new();
        let quoted = chars.next_if_eq(&'"').is_some();
        loop {
            match chars.peek().copied() {
                Some('"') if quoted => {
                    chars.next();
                    break;
                }
                Some('\\') => {
                    chars.next();
                    element.push(chars.next().ok_or("it ends within an escape")?);
                }
                Some(',') | None if !quoted => break,
                None => return Err("a quote is not closed"),
                Some('{' | '}' | '"') if !quoted => return Err("it has more than one dimension"),
                Some(c) => {
                    chars.next();
                    element.push(c);
                }
            }
        }
        all.push((quoted || !element.eq_ignore_ascii_case("null")).then_some(element));
        match chars.next() {
            None => return Ok(all),
            Some(',') => {}
            Some(_) => return Err("something follows a closed quote"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nulls_and_quotes() {
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(elements("{}"), Ok(vec![]));
        assert_eq!(
            elements(r#"{a,NULL,"NULL","b c","\"\\",""}"#),
            Ok(vec![some("a"), None, some("NULL"), some("b c"), some("\"\\"), some("")])
        );
        for bad in ["", "{", "a", "{{a}}", "{\"a}", "{\"a\"b}", "{a\\}"] {
            assert!(elements(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(all in proptest::collection::vec(".{0,12}", 0..8)) {
            let mut text = String::new();
            let mut writer = ArrayWriter::begin(&mut text);
            all.iter().for_each(|e| writer.push(e));
            writer.end();
            let read: Vec<String> = elements(&text).unwrap().into_iter().map(Option::unwrap).collect();
            prop_assert_eq!(read, all);
        }

        #[test]
        fn never_a_panic(text in "[{},\"\\\\a NULL]{0,20}") {
            let _ = elements(&text);
        }
    }
}
