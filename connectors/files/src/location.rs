//! A folder of a file system or of object storage, with the options that reach it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anabranch_core::{Error, Result, Secret};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use url::Url;

use crate::store::Store;

/// A folder: a path, `file:///path`, `gs://bucket/folder` or `s3://bucket/folder`.
///
/// Credentials are found as the providers' own tools do (`GOOGLE_APPLICATION_CREDENTIALS`,
/// `AWS_ACCESS_KEY_ID`, `AWS_ROLE_ARN`, the machine's metadata server, ...). [`Location::option`] sets
/// what differs. Nothing is opened before the first use.
///
/// ```
/// use anabranch_files::Location;
/// let local = Location::new("/var/lib/anabranch/orders");
/// let own = Location::new("s3://orders/windows")
///     .option("endpoint", "https://minio.internal:9000")
///     .option("access_key_id", "env:MINIO_KEY")
///     .option("secret_access_key", "file:/run/secrets/minio");
/// assert_eq!(format!("{own:?}"), r#"Location { url: "s3://orders/windows", options: ["access_key_id", "endpoint", "secret_access_key"] }"#);
/// ```
#[derive(Clone)]
pub struct Location {
    url: String,
    options: BTreeMap<String, Secret>,
    section: Arc<str>,
}

/// Where a location is, as far as its text tells.
enum Place {
    Local(PathBuf),
    Google { bucket: String, folder: String },
    Amazon { bucket: String, folder: String },
}

impl Location {
    /// The folder at `url`. It need not exist: what is written creates it. A bucket must.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), options: BTreeMap::new(), section: "files".into() }
    }

    /// Sets an option of the store: a key of `object_store`'s `AmazonS3ConfigKey`, `GoogleConfigKey` or
    /// `ClientConfigKey`, with or without the prefix `aws_` or `google_` (`region`, `endpoint`,
    /// `allow_http`, `service_account`, `timeout`, ...). The value may be `env:NAME` or `file:PATH`.
    #[must_use]
    pub fn option(mut self, key: impl Into<String>, value: impl Into<Secret>) -> Self {
        self.options.insert(key.into(), value.into());
        self
    }

    /// The folder `name` within this one.
    #[must_use]
    pub fn folder(mut self, name: &str) -> Self {
        let name = name.trim_matches('/');
        if !name.is_empty() {
            self.url = format!("{}/{name}", self.url.trim_end_matches('/'));
        }
        self
    }

    /// The configuration section that it is from: errors name its keys.
    pub(crate) fn section(mut self, section: &str) -> Self {
        self.section = section.into();
        self
    }

    /// Finds what can be found without a connection.
    ///
    /// # Errors
    /// [`Config`](anabranch_core::ErrorKind::Config), naming the key.
    pub fn check(&self) -> Result<()> {
        self.store().map(drop)
    }

    /// The store of it. No connection is made.
    pub(crate) fn store(&self) -> Result<Store> {
        let key: Arc<str> = format!("{}.path", self.section).into();
        match self.place(&key)? {
            Place::Local(root) => {
                if let Some(option) = self.options.keys().next() {
                    let problem = "a folder of the file system takes no options";
                    return Err(Error::config(self.option_key(option), problem).hint("leave it out"));
                }
                let prefix = Path::from_absolute_path(&root)
                    .map_err(|e| Error::config(&key, format!("{} is no path", root.display())).because(e))?;
                let inner = Arc::new(LocalFileSystem::new().with_fsync(true));
                Ok(Store::local(inner, prefix, root, key, self.url.clone()))
            }
            Place::Google { bucket, folder } => {
                let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
                for (option, value) in &self.options {
                    let known = self.known::<GoogleConfigKey>(option)?;
                    builder = builder.with_config(known, value.resolve(&self.option_key(option))?.expose());
                }
                let inner = builder.build().map_err(|e| self.unusable(&key, e))?;
                Ok(Store::cloud(Arc::new(inner), self.prefix(&key, &folder)?, key, self.url.clone()))
            }
            Place::Amazon { bucket, folder } => {
                let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
                for (option, value) in &self.options {
                    let known = self.known::<AmazonS3ConfigKey>(option)?;
                    builder = builder.with_config(known, value.resolve(&self.option_key(option))?.expose());
                }
                let inner = builder.build().map_err(|e| self.unusable(&key, e))?;
                Ok(Store::cloud(Arc::new(inner), self.prefix(&key, &folder)?, key, self.url.clone()))
            }
        }
    }

    fn place(&self, key: &str) -> Result<Place> {
        if self.url.is_empty() {
            return Err(Error::config(key, "is empty").hint("name a folder"));
        }
        let Some((scheme, _)) = self.url.split_once("://") else {
            let path = std::path::absolute(&self.url)
                .map_err(|e| Error::config(key, format!("{} is no path", self.url)).because(e))?;
            return Ok(Place::Local(path));
        };
        // Its text is not repeated: a password may be in it, wrongly.
        let url = Url::parse(&self.url).map_err(|e| Error::config(key, "is no URL").because(e))?;
        if !url.username().is_empty() || url.password().is_some() {
            let hint = format!("set them as options, [{}.options]", self.section);
            return Err(Error::config(key, "must not hold credentials").hint(hint));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(Error::config(key, "must not have a part after ? or #"));
        }
        let bucket = || match url.host_str() {
            Some(bucket) if !bucket.is_empty() => Ok(bucket.to_owned()),
            _ => Err(Error::config(key, format!("names no bucket: {scheme}://bucket/folder"))),
        };
        let folder = url.path().trim_matches('/').to_owned();
        match scheme {
            "file" => match url.to_file_path() {
                Ok(path) => Ok(Place::Local(path)),
                Err(()) => Err(Error::config(key, "names no local folder: file:///folder, with three slashes")),
            },
            "gs" => Ok(Place::Google { bucket: bucket()?, folder }),
            "s3" | "s3a" => Ok(Place::Amazon { bucket: bucket()?, folder }),
            other => Err(Error::config(key, format!("{other}:// is not known"))
                .hint("a path, file:///folder, gs://bucket/folder or s3://bucket/folder")),
        }
    }

    fn prefix(&self, key: &str, folder: &str) -> Result<Path> {
        Path::from_url_path(folder).map_err(|e| Error::config(key, "is no folder of a bucket").because(e))
    }

    fn known<K: FromStr>(&self, option: &str) -> Result<K> {
        option.to_ascii_lowercase().parse().map_err(|_| {
            Error::config(self.option_key(option), format!("{} has no such option", self.scheme()))
                .hint("the names are object_store's: endpoint, region, allow_http, service_account, ...")
        })
    }

    fn option_key(&self, option: &str) -> String {
        format!("{}.options.{option}", self.section)
    }

    fn scheme(&self) -> &str {
        self.url.split_once("://").map_or("file", |(scheme, _)| scheme)
    }

    fn unusable(&self, key: &str, cause: object_store::Error) -> Error {
        Error::config(key, format!("{}:// cannot be used with these options and this environment", self.scheme()))
            .because(cause)
    }
}

impl From<&str> for Location {
    fn from(url: &str) -> Self {
        Self::new(url)
    }
}

impl From<String> for Location {
    fn from(url: String) -> Self {
        Self::new(url)
    }
}

impl From<PathBuf> for Location {
    fn from(path: PathBuf) -> Self {
        Self::new(path.to_string_lossy())
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A URL with a password in it is refused, but may be printed before that.
        let url = if self.url.contains('@') { "***" } else { &self.url };
        f.debug_struct("Location")
            .field("url", &url)
            .field("options", &self.options.keys().collect::<Vec<_>>())
            .finish()
    }
}
