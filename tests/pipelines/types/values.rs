//! PostgreSQL's types, and the values at the edges of each.

/// A type, with values as its input function reads them.
pub(super) struct Kind {
    /// As DDL writes it.
    pub(super) native: &'static str,
    /// Values that every target keeps.
    pub(super) values: Vec<String>,
    /// Values that MySQL refuses, and the others keep.
    pub(super) refused: Vec<String>,
    /// Whether it can be a primary key.
    pub(super) key: bool,
    /// Whether some servers do not have it.
    pub(super) optional: bool,
}

fn kind(native: &'static str, values: &[&str]) -> Kind {
    Kind {
        native,
        values: values.iter().map(|v| (*v).to_owned()).collect(),
        refused: Vec::new(),
        key: true,
        optional: false,
    }
}

impl Kind {
    fn and(mut self, more: impl IntoIterator<Item = String>) -> Self {
        self.values.extend(more);
        self
    }

    fn refused(mut self, values: &[&str]) -> Self {
        self.refused.extend(values.iter().map(|v| (*v).to_owned()));
        self
    }

    fn and_refused(mut self, more: impl IntoIterator<Item = String>) -> Self {
        self.refused.extend(more);
        self
    }

    /// It has no order by which it could be a key.
    fn no_key(mut self) -> Self {
        self.key = false;
        self
    }

    /// Values that fit into a key, of PostgreSQL and of MySQL.
    pub(super) fn key_values(&self, refused: bool) -> Vec<&String> {
        let kept = self.values.iter().chain(self.refused.iter().filter(|_| refused));
        kept.filter(|v| self.key && v.len() < 500).collect()
    }

    /// Its name in the table of contracts.
    pub(super) fn label(&self) -> &str {
        match self.native {
            "public.mood" => "enum",
            "public.price" => "domain over numeric(8,3)",
            "public.pair" => "composite",
            "public.mood[]" => "enum[]",
            "public.price[]" => "domain[]",
            "public.pair[]" => "composite[]",
            native => native,
        }
    }
}

/// Types that both sides need; the enum is made by the sink.
pub(super) const TYPES: &str = "CREATE DOMAIN public.price AS numeric(8,3) CHECK (VALUE > -1000);
    CREATE TYPE public.pair AS (n integer, t text);";

/// Types of the source only.
pub(super) const SOURCE_TYPES: &str = "CREATE TYPE public.mood AS ENUM ('sad', 'so so', 'Sad', '1', 'it''s \"q\" ü')";

/// Every type that is always there.
pub(super) fn kinds() -> Vec<Kind> {
    [numbers(), strings(), times(), documents(), networks_and_shapes(), ranges(), arrays(), own(), internal()]
        .into_iter()
        .flatten()
        .collect()
}

fn numbers() -> Vec<Kind> {
    vec![
        kind("boolean", &["t", "f"]),
        kind("smallint", &["-32768", "32767", "0"]),
        kind("integer", &["-2147483648", "2147483647", "0"]),
        kind("bigint", &["-9223372036854775808", "9223372036854775807", "9007199254740993", "0"]),
        kind(
            "real",
            &["0", "-0", "0.1", "1e-45", "1.1754944e-38", "3.4028235e+38", "-3.4028235e+38", "16777217", "1e+07"],
        )
        .refused(&["NaN", "Infinity", "-Infinity"]),
        kind(
            "double precision",
            &[
                "0",
                "-0",
                "0.1",
                "0.30000000000000004",
                "5e-324",
                "2.2250738585072014e-308",
                "1.7976931348623157e+308",
                "-1.7976931348623157e+308",
                "9007199254740993",
                "123456789012345680000",
                "1e+23",
                "1e+15",
            ],
        )
        .refused(&["NaN", "Infinity", "-Infinity"]),
        kind("numeric", &["0", "-0", "1.50", "1.5", "0.00", "-12345678901234567890.123456789", "1e20", "100"])
            .and(["9".repeat(35), format!("-{}.{}", "9".repeat(35), "9".repeat(30)), format!("0.{}1", "0".repeat(29))])
            .refused(&["NaN", "Infinity", "-Infinity"])
            .and_refused([
                format!("1{}", "0".repeat(35)),
                format!("0.{}1", "0".repeat(30)),
                format!("{}.{}", "12345".repeat(200), "67890".repeat(200)),
                "9".repeat(131_072),
                format!("0.{}", "1".repeat(16_383)),
            ]),
        kind("numeric(10,2)", &["99999999.99", "-99999999.99", "0.01", "1.50", "0"]).refused(&["NaN"]),
        kind("numeric(65,30)", &["0.1"]).and([format!("-{}.{}", "9".repeat(35), "9".repeat(30))]).refused(&["NaN"]),
        kind("numeric(5,-2)", &["1234567", "-9999900", "0"]).refused(&["NaN"]),
        kind("numeric(3,5)", &["0.00999", "-0.00001"]).refused(&["NaN"]),
        kind("numeric(1000,500)", &["0.5", "-1"])
            .refused(&["NaN"])
            .and_refused([format!("{}.5", "9".repeat(500)), format!("0.{}1", "0".repeat(499))]),
        kind("money", &["-92233720368547758.08", "92233720368547758.07", "0", "1234.5"]),
        kind("oid", &["0", "4294967295"]),
    ]
}

const TEXTS: &[&str] = &[
    "",
    " ",
    "a",
    "A",
    "a ",
    " trailing  ",
    "NULL",
    "null",
    "\\N",
    "\\.",
    "\\",
    "\\\\x41",
    "it's \"quoted\" `and` %s _ ${x} ;--",
    "tab\there",
    "line\nbreak",
    "carriage\r\nreturn",
    "\u{1}\u{8}\u{b}\u{c}\u{1a}\u{1b}\u{7f}",
    "ünï©ødé",
    "e\u{301}",
    "é",
    "\u{feff}bom",
    "🦀👨‍👩‍👧",
    "\u{10ffff}\u{ffff}\u{d7ff}",
    "007",
    "1e5",
    "{}",
    "t",
    "ß",
    "ss",
];

fn strings() -> Vec<Kind> {
    let short: Vec<&str> = TEXTS.iter().copied().filter(|t| t.chars().count() <= 20).collect();
    let hex = |bytes: &[u8]| bytes.iter().fold(String::from("\\x"), |s, b| format!("{s}{b:02x}"));
    let all: Vec<u8> = (0..=255).collect();
    vec![
        kind("text", TEXTS).and(["x".repeat(100_000)]),
        kind("character varying", TEXTS),
        kind("character varying(20)", &short).and(["🦀".repeat(20)]),
        kind("character varying(10000)", &short).and(["🦀".repeat(10_000)]),
        kind("character(5)", &["", "a", "ab  c", "äöüßé", "🦀🦀🦀🦀🦀", "A"]),
        kind("bpchar", &["", "a", "ab  "]),
        kind("\"char\"", &["a", "", "\\"]),
        kind("name", &["", "some name", "ü'\"\\"]),
        kind("bytea", &["\\x", "\\x00", "\\x0000", "\\x5c27220a0d091a", "\\x4e554c4c", "\\x20", "\\x2020"])
            .and([hex(&all), hex(&all.repeat(300))]),
    ]
}

fn times() -> Vec<Kind> {
    let timestamps = [
        "0001-01-01 00:00:00",
        "0999-12-31 23:59:59.1",
        "1500-02-28 12:00:00",
        "1582-10-10 00:00:00",
        "1969-12-31 23:59:59.999999",
        "1970-01-01 00:00:00",
        "2000-02-29 00:00:00.000001",
        "2038-01-19 03:14:08",
        "9999-12-31 23:59:59.999999",
    ];
    let beyond = [
        "infinity",
        "-infinity",
        "4714-11-24 00:00:00 BC",
        "0001-12-31 23:59:59.999999 BC",
        "10000-01-01 00:00:00",
        "294276-12-31 23:59:59.999999",
    ];
    vec![
        kind("date", &["0001-01-01", "0999-12-31", "1500-02-28", "1582-10-10", "2024-02-29", "9999-12-31"]).refused(&[
            "infinity",
            "-infinity",
            "4714-11-24 BC",
            "0001-12-31 BC",
            "10000-01-01",
            "5874897-12-31",
        ]),
        kind("time", &["00:00:00", "24:00:00", "23:59:59.999999", "00:00:00.000001", "12:30:00.5"]),
        kind("time(0)", &["00:00:00", "24:00:00", "12:30:01"]),
        kind("timetz", &["00:00:00+00", "24:00:00-15:59:59", "23:59:59.999999+15:59", "04:05:06.5-08", "12:00+05:30"]),
        kind("timestamp", &timestamps).refused(&beyond),
        kind("timestamp(3)", &["2024-01-01 00:00:00.123", "0001-01-01 00:00:00"]).refused(&["infinity"]),
        kind("timestamptz", &timestamps)
            .and(["2024-03-31 02:30:00.5+02".into(), "2024-06-01 12:00:00 Asia/Kolkata".into()])
            .refused(&beyond),
        kind(
            "interval",
            &[
                "0",
                "-00:00:00.000001",
                "1 year 2 mons -3 days 04:05:06.7",
                "-1 year -2 mons +3 days -04:05:06.789",
                "1 day",
                "24:00:00",
                "-178000000 years",
                "178000000 years 11 mons",
                "-2147483648 days",
                "2562047788:00:54.775807",
                "-2562047788:00:54.775807",
            ],
        ),
        kind("interval day to second(3)", &["1 day 02:03:04.567", "-00:00:00.001"]),
    ]
}

fn documents() -> Vec<Kind> {
    let deep = || format!("{}1{}", "[".repeat(100), "]".repeat(100));
    vec![
        kind("uuid", &["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"]),
        kind(
            "json",
            &[
                "{\"b\": 1, \"a\" :[1,  2.50], \"b\": null}",
                "\"\\u0000\"",
                "null",
                "\"\"",
                "1e400",
                " 1 ",
                "\"ü🦀\\n\"",
            ],
        )
        .and([deep()])
        .no_key(),
        kind(
            "jsonb",
            &[
                "{\"b\": 1, \"a\" :[1,  2.50], \"b\": null}",
                "null",
                "\"\"",
                "[]",
                "1e400",
                "\"ü🦀\\\\\\n\\\"\"",
                "1.10",
            ],
        )
        .and([deep(), format!("{{\"n\": 0.{}}}", "12345".repeat(50)), format!("\"{}\"", "x".repeat(100_000))]),
        kind("jsonpath", &["$.\"a\"[*]?(@ > 1)", "strict $"]).no_key(),
        kind("tsvector", &["", "a:1,2B 'it''s':3", "fat cat"]),
        kind("tsquery", &["", "a & !b", "'it''s' <-> c:*AB"]),
    ]
}

fn networks_and_shapes() -> Vec<Kind> {
    vec![
        kind("inet", &["10.0.0.1", "10.0.0.1/8", "0.0.0.0/0", "::1", "2001:db8::1/32", "::ffff:1.2.3.4"]),
        kind("cidr", &["10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32", "::/0"]),
        kind("macaddr", &["08:00:2b:01:02:03", "ff:ff:ff:ff:ff:ff"]),
        kind("macaddr8", &["08:00:2b:01:02:03:04:05"]),
        kind("bit(1)", &["0", "1"]),
        kind("bit(5)", &["00000", "11111", "00101"]),
        kind("bit(64)", &[]).and(["1".repeat(64), "0".repeat(64), format!("{}1", "0".repeat(63))]),
        kind("bit(70)", &[]).and(["1".repeat(70), format!("{}1", "0".repeat(69))]),
        kind("bit varying", &["", "0", "00", "101"]).and(["01".repeat(2000)]),
        kind("bit varying(8)", &["", "0", "11111111"]),
        kind("point", &["(1.5,-2)", "(NaN,Infinity)", "(0.1,1e-300)"]).no_key(),
        kind("line", &["{1,-1,0.1}"]).no_key(),
        kind("lseg", &["[(0,0),(1,1e+30)]"]).no_key(),
        kind("box", &["(3,4),(1,2)"]).no_key(),
        kind("path", &["((0,0),(1,1))", "[(0,0),(1,1)]"]).no_key(),
        kind("polygon", &["((0,0),(1,0),(0.3,1))"]).no_key(),
        kind("circle", &["<(1,2),3>"]).no_key(),
    ]
}

fn ranges() -> Vec<Kind> {
    vec![
        kind("int4range", &["empty", "[1,5)", "(,)", "[1,)", "[-2147483648,2147483647)"]),
        kind("int8range", &["empty", "[-9223372036854775808,9223372036854775807)"]),
        kind("numrange", &["empty", "(1.5,2.50]", "[NaN,NaN]", "(,1]"]),
        kind("daterange", &["[2024-01-01,infinity]", "empty", "[0044-03-15 BC,2024-01-01)"]),
        kind("tsrange", &["[\"2024-01-01 00:00:00\",infinity)", "(,)"]),
        kind("tstzrange", &["[\"2024-01-01 00:00:00+02\",\"2024-01-02 00:00:00.5+00\"]", "empty"]),
        kind("int4multirange", &["{}", "{[1,3),[5,9)}"]),
        kind("int8multirange", &["{}", "{(,3),[5,)}"]),
        kind("nummultirange", &["{}", "{[1.0,2.50]}"]),
        kind("datemultirange", &["{}", "{[2024-01-01,2024-02-01)}"]),
        kind("tsmultirange", &["{}", "{[\"2024-01-01 00:00:00\",infinity)}"]),
        kind("tstzmultirange", &["{}", "{[\"2024-01-01 00:00:00+00\",\"2024-01-02 00:00:00+00\")}"]),
    ]
}

fn arrays() -> Vec<Kind> {
    vec![
        kind("boolean[]", &["{t,f,NULL}", "{}"]),
        kind("integer[]", &["{}", "{1,NULL,-3}", "{{1,2},{3,4}}", "[0:2]={1,2,3}"]),
        kind("bigint[]", &["{-9223372036854775808}"]),
        kind("double precision[]", &["{NaN,-Infinity,-0,5e-324,NULL}"]),
        kind("numeric[]", &["{1.50,1.5,NaN,Infinity,NULL}", "{{0.0},{1e30}}"]),
        kind("numeric(5,2)[]", &["{1.50,NaN}"]),
        kind(
            "text[]",
            &[
                "{}",
                "{\"\",NULL,\"NULL\",\"a\\\"b\",\"c\\\\d\",\"{e}\",\"f,g\",\" h \",\"ü🦀\",\"tab\there\",\"n\nl\"}",
                "{{a,b},{c,\"d e\"}}",
            ],
        ),
        kind("character varying(5)[]", &["{abc,\"\",\"äöüßé\"}"]),
        kind("bytea[]", &["{\"\\\\x00ff\",NULL,\"\\\\x\"}"]),
        kind("date[]", &["{2024-01-01,infinity,\"0044-03-15 BC\"}"]),
        kind("timestamptz[]", &["{\"2024-01-01 00:00:00.5+02\",infinity,NULL}"]),
        kind("interval[]", &["{\"1 year -3 days\",NULL}"]),
        kind("uuid[]", &["{00000000-0000-0000-0000-000000000000}"]),
        kind("jsonb[]", &["{\"{\\\"a\\\": \\\"x,y\\\"}\",NULL}"]),
        kind("box[]", &["{(3,4),(1,2);(1,1),(0,0)}"]).no_key(),
        kind("public.mood[]", &["{sad,\"so so\",NULL}"]),
        kind("public.price[]", &["{1.500,NULL}"]),
        kind("public.pair[]", &["{\"(1,\\\"a \\\"\\\"b\\\"\\\"\\\")\",NULL,\"(,)\"}", "{}"]),
    ]
}

fn own() -> Vec<Kind> {
    vec![
        kind("public.mood", &["sad", "so so", "Sad", "1", "it's \"q\" ü"]),
        kind("public.price", &["-999.999", "1.500"]).refused(&["NaN"]),
        kind("public.pair", &["(1,\"a \"\"b\"\"\")", "(,)", "(1,\"\")", "(2,\"x,y\\\\z\")"]),
    ]
}

/// Types of the server's own workings.
fn internal() -> Vec<Kind> {
    vec![
        kind("pg_lsn", &["0/0", "FFFFFFFF/FFFFFFFF", "16/B374D848"]),
        kind("xid", &["3", "4294967295"]).no_key(),
        kind("xid8", &["0", "18446744073709551615"]),
        kind("cid", &["7"]).no_key(),
        kind("tid", &["(0,1)", "(4294967295,65535)"]),
        kind("pg_snapshot", &["10:20:10,14,15"]).no_key(),
        kind("regclass", &["pg_class", "public.t0", "-"]),
        kind("regtype", &["integer", "public.pair"]),
        kind("regproc", &["pg_catalog.now"]),
        kind("int2vector", &["", "1 2 -3"]).no_key(),
        kind("oidvector", &["", "1 4294967295"]),
        kind("refcursor", &["a cursor"]).no_key(),
    ]
}

/// Types that not every server has, with what makes them, and what tells whether it has them.
pub(super) fn optional() -> Vec<(Kind, &'static str, &'static str)> {
    let extension = |name: &str| -> &'static str {
        match name {
            "hstore" => "SELECT 1 FROM pg_available_extensions WHERE name = 'hstore'",
            _ => "SELECT 1 FROM pg_available_extensions WHERE name = 'citext'",
        }
    };
    vec![
        (
            kind("xml", &["<a b=\"c\">d</a>", "text &amp; more", ""]).no_key(),
            "SELECT 1",
            "SELECT 1 FROM pg_config() WHERE name = 'CONFIGURE' AND setting LIKE '%--with-libxml%'",
        ),
        (
            kind("public.hstore", &["", "\"a\"=>\"1\", \"b\"=>NULL, \"c\\\"\"=>\"\""]).no_key(),
            "CREATE EXTENSION hstore",
            extension("hstore"),
        ),
        (kind("public.citext", &["MiXed", "", "ü "]), "CREATE EXTENSION citext", extension("citext")),
    ]
}
