//! Transforms as a configuration file writes them.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Filter, Mask, MaskRule, Project, Rename, Shard, TablePattern, Transform};
use crate::error::{Error, Result};

/// One of the `[[transforms]]` of a configuration. They are applied in order; a later one sees the
/// names that an earlier one gave.
///
/// ```
/// use anabranch_core::transform::TransformConfig;
/// #[derive(serde::Deserialize)]
/// struct File { transforms: Vec<TransformConfig> }
/// let file: File = toml::from_str(r#"
///     [[transforms]]
///     type = "filter"
///     include = ["public.*"]
///     exclude = ["*.audit_*"]
///     rows = [{ tables = ["public.orders"], column = "region", op = "in", values = ["eu", "uk"] }]
///
///     [[transforms]]
///     type = "mask"
///     tables = ["public.customers"]
///     columns = { email = { with = "sha256", key = "a long secret, better as env:NAME" }, phone = { with = "null" } }
///
///     [[transforms]]
///     type = "project"
///     tables = ["public.customers"]
///     drop = ["password_hash"]
///
///     [[transforms]]
///     type = "rename"
///     schemas = { public = "shop" }
///     columns = { "public.orders" = { note = "remark" } }
///
///     [[transforms]]
///     type = "shard"
///     tables = ["shop.orders"]
///     column = "region"
/// "#).unwrap();
/// for transform in file.transforms {
///     transform.build()?;
/// }
/// # Ok::<(), anabranch_core::Error>(())
/// ```
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TransformConfig {
    /// See [`Filter`].
    Filter(Filter),
    /// See [`Rename`].
    Rename(Rename),
    /// See [`Project`].
    Project(Project),
    /// See [`Mask`].
    Mask(MaskConfig),
    /// See [`Shard`].
    Shard(ShardConfig),
}

/// The settings of a [`Mask`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskConfig {
    /// The tables that it is about.
    pub tables: Vec<TablePattern>,
    /// The columns, and what becomes of each.
    pub columns: BTreeMap<String, MaskRule>,
}

/// The settings of a [`Shard`]: either a column or a name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardConfig {
    /// The tables that it is about.
    pub tables: Vec<TablePattern>,
    /// The column whose value is the shard.
    #[serde(default)]
    pub column: Option<String>,
    /// The shard of all of them.
    #[serde(default)]
    pub name: Option<String>,
}

impl TransformConfig {
    /// The transform.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config), naming the setting.
    pub fn build(self) -> Result<Box<dyn Transform>> {
        Ok(match self {
            Self::Filter(filter) => {
                filter.check()?;
                Box::new(filter)
            }
            Self::Rename(rename) => Box::new(rename),
            Self::Project(project) => {
                project.check()?;
                Box::new(project)
            }
            Self::Mask(mask) => Box::new(Mask::new(mask.tables, mask.columns)?),
            Self::Shard(ShardConfig { tables, column, name }) => Box::new(match (column, name) {
                (Some(column), None) => Shard::column(tables, column),
                (None, Some(name)) => Shard::constant(tables, name),
                _ => return Err(Error::config("transform.shard", "give either column or name")),
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TransformConfig, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn unknown_settings_are_refused() {
        for text in [
            "type = 'nope'",
            "type = 'filter'\nincludes = ['a']",
            "type = 'rename'\ntable = {}",
            "type = 'project'\ntables = ['a']\ndrops = ['b']",
            "type = 'mask'\ntables = ['a']\ncolumns = { b = { with = 'null', key = 'x' } }",
            "type = 'mask'\ntables = ['a']\ncolumns = { b = { with = 'sha256' } }",
            "type = 'shard'\ntables = ['a']\nby = 'b'",
            "type = 'filter'\nrows = [{ tables = ['a'], column = 'b', op = 'like', value = 'c' }]",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_incomplete_is_found_when_it_is_built() {
        for text in [
            "type = 'project'\ntables = ['a']",
            "type = 'project'\ntables = ['a']\nkeep = ['b']\ndrop = ['c']",
            "type = 'shard'\ntables = ['a']",
            "type = 'shard'\ntables = ['a']\ncolumn = 'b'\nname = 'c'",
            "type = 'filter'\nrows = [{ tables = ['a'], column = 'b', op = 'eq' }]",
            "type = 'filter'\nrows = [{ tables = ['a'], column = 'b', op = 'in', value = 1 }]",
            "type = 'mask'\ntables = ['a']\ncolumns = { b = { with = 'sha256', key = 'env:ANABRANCH_NOT_SET' } }",
        ] {
            let error = parse(text).unwrap().build().unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Config, "{text}");
        }
    }
}
