//! The section `[xcluster]` of a file of its own.

use anabranch_core::Result;
use serde::Deserialize;

use super::YbAdmin;

/// Where `yb-admin` is, and whom it asks.
///
/// ```toml
/// [xcluster]
/// yb_admin = "/opt/yugabyte/bin/yb-admin"
/// master_addresses = "10.2.0.1:7100,10.2.0.2:7100,10.2.0.3:7100"   # of the target
/// certs_dir = "/opt/yugabyte/certs"
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct XClusterConfig {
    /// The program. Default: `yb-admin`, on the path.
    #[serde(default = "on_the_path")]
    pub yb_admin: String,
    /// The masters of the target universe, `host:port` with commas between.
    pub master_addresses: String,
    /// The folder of the certificates, where the universe encrypts.
    #[serde(default)]
    pub certs_dir: Option<String>,
}

fn on_the_path() -> String {
    "yb-admin".to_owned()
}

impl XClusterConfig {
    /// The program that asks the target.
    ///
    /// # Errors
    /// `Config`, naming the key.
    pub fn target(&self) -> Result<YbAdmin> {
        let admin = YbAdmin::new(&self.yb_admin, &self.master_addresses);
        let admin = match &self.certs_dir {
            Some(folder) => admin.certs_dir(folder),
            None => admin,
        };
        admin.check()?;
        Ok(admin)
    }
}
