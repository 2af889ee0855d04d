//! Quoting, for statements whose names cannot be parameters.

/// An identifier, quoted exactly: case, spaces and quotes are kept.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string constant that means the same whatever `standard_conforming_strings` is.
pub fn literal(text: &str) -> String {
    if text.contains('\\') {
        format!(" E'{}'", text.replace('\\', r"\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

/// A table's name, quoted.
pub fn table(name: &anabranch_core::TableName) -> String {
    if name.schema.is_empty() { ident(&name.name) } else { format!("{}.{}", ident(&name.schema), ident(&name.name)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_cannot_be_escaped_from() {
        assert_eq!(ident(r#"a"; drop"#), r#""a""; drop""#);
        assert_eq!(literal(r"it's \"), r" E'it''s \\'");
        assert_eq!(table(&anabranch_core::TableName::new("S x", "T")), r#""S x"."T""#);
    }
}
