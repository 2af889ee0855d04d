//! Stand-in until the real one is merged.
#![allow(missing_docs)]
use crate::error::Result;
use crate::model::{TableName, TableSchema};
use crate::sink::Sink;
use std::collections::HashMap;

#[derive(Debug, Clone, Default)]
pub struct LossyConsent(Vec<String>);
impl LossyConsent {
    pub fn parse(entries: &[String]) -> Result<Self> {
        Ok(Self(entries.to_vec()))
    }
}
#[derive(Debug, Default)]
pub struct Preflight;
impl Preflight {
    pub fn verdict(&self) -> Result<()> {
        Ok(())
    }
    pub fn pinned_groups(&self) -> HashMap<TableName, u32> {
        HashMap::new()
    }
}
pub async fn preflight(_: &[TableSchema], _: &dyn Sink, _: &LossyConsent, _: bool) -> Result<Preflight> {
    Ok(Preflight)
}
impl std::fmt::Display for Preflight {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Ok(())
    }
}
