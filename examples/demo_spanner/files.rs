//! The configuration, and the two files that come from the Spanner migration tool.

use crate::shards::Shards;
use crate::shop::{SHARDS, Shop, TABLES};

/// The pipeline.
pub(crate) fn config(shop: &Shop) -> String {
    format!(
        r#"[pipeline]
name = "shop-fallback"
order = "transaction"                 # each shard gets its part of every transaction whole, in commit order

[source]
type = "spanner"
database = "{}"
change_stream = "shop"                # created by the first run
endpoint = "http://{}"
snapshot = "never"                    # the shards hold the rows already

[sink]
type = "sharded"
shards_file = "shards.json"
[sink.shard]
versions = true                       # an equal or newer row wins
accept_relaxed_durability = true      # the databases of this demonstration do not force their log to disk

[checkpoint]
type = "sqlite"
path = "state.db"

[dead_letters]
type = "sqlite"
path = "letters.db"
on_rejected = "halt_shard"

[mapping]
lossy = ["column:Orders.Placed", "column:Customers.Since"]   # datetime(6) holds microseconds

[[transform]]
type = "forward_migration"            # leaves out what the forward migration wrote

[[transform]]
type = "session"
file = "session.json"
"#,
        shop.database(),
        shop.host()
    )
}

/// A session file of the Spanner migration tool: which table and column is which. Ids join both sides.
pub(crate) fn session() -> String {
    let column = |n: usize, name: &str| format!(r#""c{n}": {{"Name": "{name}"}}"#);
    let (mut spanner, mut mysql) = (Vec::new(), Vec::new());
    for (n, table) in TABLES.iter().enumerate() {
        let ours: Vec<String> = table.columns.iter().enumerate().map(|(c, at)| column(c, at.name)).collect();
        let theirs: Vec<String> = table.columns.iter().enumerate().map(|(c, at)| column(c, at.there)).collect();
        let keys: Vec<String> =
            (0..table.keys).map(|c| format!(r#"{{"ColId": "c{c}", "Order": {}}}"#, c + 1)).collect();
        spanner.push(format!(
            r#""t{n}": {{"Name": "{}", "ShardIdColumn": "shard", "ColDefs": {{{}, "shard": {{"Name": "migration_shard_id"}}}}}}"#,
            table.name,
            ours.join(", ")
        ));
        mysql.push(format!(
            r#""t{n}": {{"Name": "{}", "PrimaryKeys": [{}], "ColDefs": {{{}}}}}"#,
            table.there,
            keys.join(", "),
            theirs.join(", ")
        ));
    }
    format!(
        r#"{{"SpSchema": {{{}}}, "SrcSchema": {{{}}}, "SyntheticPKeys": {{}}}}"#,
        spanner.join(", "),
        mysql.join(", ")
    )
}

/// Where each shard is.
pub(crate) fn shards(shards: &Shards) -> String {
    let shard = |(name, database): (&&str, &str)| {
        format!(
            r#"{{"logicalShardId": "{name}", "host": "127.0.0.1", "port": "{}", "user": "root", "password": "", "dbName": "{database}"}}"#,
            shards.port()
        )
    };
    let all: Vec<String> = SHARDS.iter().zip(shards.databases()).map(shard).collect();
    format!(r#"{{"shardConfigs": [{}]}}"#, all.join(", "))
}
