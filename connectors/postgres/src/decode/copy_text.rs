//! Rows of COPY TO STDOUT in text format (PostgreSQL's manual, COPY, "Text Format").

use super::DecodeError;

/// Calls `value` for each field of a row, in order: `None` is NULL. `scratch` holds unescaped fields.
///
/// `row` is one CopyData message without its line end; the server sends one row in each.
pub(crate) fn fields<E: From<DecodeError>>(
    row: &[u8],
    scratch: &mut Vec<u8>,
    mut value: impl FnMut(Option<&[u8]>) -> Result<(), E>,
) -> Result<(), E> {
    for field in row.split(|b| *b == b'\t') {
        if field == b"\\N" {
            value(None)?;
        } else if field.contains(&b'\\') {
            scratch.clear();
            unescape(field, scratch)?;
            value(Some(scratch))?;
        } else {
            value(Some(field))?;
        }
    }
    Ok(())
}

/// Undoes the escapes that the server writes: the control characters, the backslash and the delimiter.
fn unescape(field: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let mut rest = field.iter();
    while let Some(&byte) = rest.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match rest.next().ok_or(DecodeError::Escape)? {
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 0x0b,
            b'\\' => b'\\',
            _ => return Err(DecodeError::Escape),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(row: &[u8]) -> Result<Vec<Option<Vec<u8>>>, DecodeError> {
        let mut got = Vec::new();
        fields::<DecodeError>(row, &mut Vec::new(), |v| {
            got.push(v.map(<[u8]>::to_vec));
            Ok(())
        })?;
        Ok(got)
    }

    fn write(row: &[Option<Vec<u8>>]) -> Vec<u8> {
        let mut line = Vec::new();
        for (n, field) in row.iter().enumerate() {
            if n > 0 {
                line.push(b'\t');
            }
            match field {
                None => line.extend_from_slice(b"\\N"),
                Some(bytes) => {
                    for b in bytes {
                        match b {
                            0x08 => line.extend_from_slice(b"\\b"),
                            0x0c => line.extend_from_slice(b"\\f"),
                            b'\n' => line.extend_from_slice(b"\\n"),
                            b'\r' => line.extend_from_slice(b"\\r"),
                            b'\t' => line.extend_from_slice(b"\\t"),
                            0x0b => line.extend_from_slice(b"\\v"),
                            b'\\' => line.extend_from_slice(b"\\\\"),
                            b => line.push(*b),
                        }
                    }
                }
            }
        }
        line
    }

    #[test]
    fn nulls_and_empty_text_differ() {
        assert_eq!(read(b"1\t\\N\t\t\\\\N").unwrap(), [Some(b"1".to_vec()), None, Some(vec![]), Some(b"\\N".to_vec())]);
        assert_eq!(read(b"a\\"), Err(DecodeError::Escape));
        assert_eq!(read(b"a\\x41"), Err(DecodeError::Escape));
    }

    proptest! {
        #[test]
        fn what_the_server_writes_is_read_back(
            row in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..20)), 1..6)
        ) {
            prop_assert_eq!(read(&write(&row)).unwrap(), row);
        }

        #[test]
        fn random_rows_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = read(&bytes);
        }

        /// Damage changes values or is an error; what is read is never more than what there was.
        #[test]
        fn damaged_rows_never_panic(
            row in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..20)), 1..6),
            at in any::<prop::sample::Index>(),
            byte: u8,
            cut in any::<prop::sample::Index>(),
        ) {
            let mut line = write(&row);
            if !line.is_empty() {
                let (at, cut) = (at.index(line.len()), cut.index(line.len()) + 1);
                line[at] = byte;
                line.truncate(cut);
            }
            if let Ok(values) = read(&line) {
                prop_assert!(values.iter().flatten().map(Vec::len).sum::<usize>() <= line.len());
                prop_assert!(values.len() <= line.len() + 1);
            }
        }
    }
}
