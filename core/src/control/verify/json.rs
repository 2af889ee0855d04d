//! One form for equal JSON: spaces, the order of names and the way of writing a string or a number
//! make no difference; of a name that is repeated the last value counts.

use super::normal::push_number;

/// Deeper documents are compared as they are written.
const DEEPEST: usize = 256;

/// Appends the form; false, with nothing appended, for a text that is no JSON.
pub(super) fn push_json(text: &str, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let mut reader = Reader { bytes: text.as_bytes(), at: 0 };
    let read = reader.value(out, 0);
    reader.skip_spaces();
    let whole = read.is_some() && reader.at == reader.bytes.len();
    if !whole {
        out.truncate(start);
    }
    whole
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn skip_spaces(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        self.skip_spaces();
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn value(&mut self, out: &mut Vec<u8>, depth: usize) -> Option<()> {
        self.skip_spaces();
        match self.peek()? {
            _ if depth > DEEPEST => None,
            b'{' => self.object(out, depth),
            b'[' => self.array(out, depth),
            b'"' => {
                let text = self.string()?;
                out.push(b's');
                push_counted(&text, out);
                Some(())
            }
            b't' => self.word("true", out),
            b'f' => self.word("false", out),
            b'n' => self.word("null", out),
            _ => {
                let rest = &self.bytes[self.at..];
                let is_part = |b: &&u8| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
                let length = rest.iter().take_while(is_part).count();
                self.at += length;
                let mut number = Vec::with_capacity(length + 4);
                push_number(std::str::from_utf8(&rest[..length]).ok()?, &mut number)?;
                out.push(b'#');
                push_counted(&number, out);
                Some(())
            }
        }
    }

    fn word(&mut self, word: &str, out: &mut Vec<u8>) -> Option<()> {
        self.bytes[self.at..].starts_with(word.as_bytes()).then(|| {
            self.at += word.len();
            out.push(word.as_bytes()[0]);
        })
    }

    fn array(&mut self, out: &mut Vec<u8>, depth: usize) -> Option<()> {
        self.at += 1;
        out.push(b'[');
        if self.take(b']').is_none() {
            loop {
                self.value(out, depth + 1)?;
                if self.take(b',').is_none() {
                    self.take(b']')?;
                    break;
                }
            }
        }
        out.push(b']');
        Some(())
    }

    fn object(&mut self, out: &mut Vec<u8>, depth: usize) -> Option<()> {
        self.at += 1;
        let mut members: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        if self.take(b'}').is_none() {
            loop {
                self.skip_spaces();
                let name = self.string()?;
                self.take(b':')?;
                let mut value = Vec::new();
                self.value(&mut value, depth + 1)?;
                members.push((name, value));
                if self.take(b',').is_none() {
                    self.take(b'}')?;
                    break;
                }
            }
        }
        // Stable: of equal names the last one stays.
        members.sort_by(|a, b| a.0.cmp(&b.0));
        out.push(b'{');
        for (n, (name, value)) in members.iter().enumerate() {
            if members.get(n + 1).is_none_or(|next| next.0 != *name) {
                push_counted(name, out);
                out.extend_from_slice(value);
            }
        }
        out.push(b'}');
        Some(())
    }

    /// The bytes that a string stands for.
    fn string(&mut self) -> Option<Vec<u8>> {
        (self.peek()? == b'"').then(|| self.at += 1)?;
        let mut text = Vec::new();
        loop {
            let byte = self.peek()?;
            self.at += 1;
            match byte {
                b'"' => return Some(text),
                b'\\' => {
                    let escaped = self.peek()?;
                    self.at += 1;
                    text.push(match escaped {
                        b'b' => 8,
                        b'f' => 12,
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'u' => {
                            let letter = self.letter()?;
                            text.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
                            continue;
                        }
                        other => other,
                    });
                }
                byte => text.push(byte),
            }
        }
    }

    /// After `\u`: four digits, or two times four that belong together.
    fn letter(&mut self) -> Option<char> {
        let high = self.four()?;
        if !(0xd800..0xdc00).contains(&high) {
            return char::from_u32(high);
        }
        self.bytes[self.at..].starts_with(b"\\u").then(|| self.at += 2)?;
        let low = self.four()?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
        char::from_u32(0x10000 + ((high - 0xd800) << 10) + low)
    }

    fn four(&mut self) -> Option<u32> {
        let digits = std::str::from_utf8(self.bytes.get(self.at..self.at + 4)?).ok()?;
        self.at += 4;
        u32::from_str_radix(digits, 16).ok()
    }
}

fn push_counted(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(text: &str) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        push_json(text, &mut out).then_some(out)
    }

    #[test]
    fn equal_documents_have_one_form() {
        for (a, b) in [
            (r#"{"a":1,"b":[true,null]}"#, r#" { "b" : [ true , null ] , "a" : 1.0 } "#),
            (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
            (r#""\u00e4\ud83e\udd80\/""#, r#""ä🦀/""#),
            ("1e2", "100"),
            ("-0.50", "-5e-1"),
            ("[]", "[ ]"),
        ] {
            assert_eq!(form(a).unwrap(), form(b).unwrap(), "{a} {b}");
        }
    }

    #[test]
    fn different_documents_have_different_forms() {
        for (a, b) in [
            (r#"{"a":1}"#, r#"{"a":"1"}"#),
            (r#"{"a":"x "}"#, r#"{"a":"x"}"#),
            (r#"{"a":null}"#, "{}"),
            ("[1,2]", "[2,1]"),
            ("[[1],2]", "[[1,2]]"),
            ("12345678901234567890.1", "12345678901234567890.2"),
            (r#"["a","b"]"#, r#"["a\",\"b"]"#),
        ] {
            assert_ne!(form(a).unwrap(), form(b).unwrap(), "{a} {b}");
        }
        for bad in ["", "{", "{\"a\"}", "[1,]", "tru", "1 2", "\"a", "nul", "-", "\"\\ud800\"", "x"] {
            assert_eq!(form(bad), None, "{bad}");
        }
        assert_eq!(form(&"[".repeat(5000)), None);
    }
}
