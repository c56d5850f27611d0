//! Views of the explorer that were added to a run's report, as a figure of its own there.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::data::decode::decode;
use crate::picture::Image;
use crate::report::figure::{FILE, Figure, Picture, Section};
use crate::{Error, Result};

/// The folder of what the explorer keeps in a run's report.
pub const NAME: &str = "explore";
/// Views of a report, at most.
const MOST: usize = 200;
/// Letters of a text of a page.
const LETTERS: usize = 2000;

/// The folder of these views.
pub(super) struct Views {
    folder: PathBuf,
    /// Held while one is added.
    adding: Mutex<()>,
}

/// What stands with a view.
pub(super) struct Words {
    pub title: String,
    pub caption: String,
    /// The part of the page's address that says what is shown, from the `#` on.
    pub link: String,
}

impl Views {
    /// Those in `folder`, which need not be there yet.
    pub fn new(folder: &Path) -> Self {
        Views { folder: folder.into(), adding: Mutex::new(()) }
    }

    /// Adds a view, a PNG, of a page that a command has opened; the number of views then.
    ///
    /// # Errors
    /// If it is no picture, there are too many, or the folder cannot be written.
    pub fn add(&self, png: &[u8], words: Words, command: &str) -> Result<usize> {
        let shown = decode(png).map_err(|error| Error::Data(format!("The view: {error}.")))?;
        let image = Image::new(shown.width, shown.height, shown.pixels);
        let _alone = self.adding.lock().expect("no panic while it is held");
        let mut figure = self.read()?;
        let section = &mut figure.sections[0];
        if section.pictures.len() >= MOST {
            let sentence = format!("The report has {MOST} views already: move {NAME} out of it.");
            return Err(Error::Data(sentence));
        }
        let io = |error| Error::io("write", &self.folder)(error);
        fs::create_dir_all(&self.folder).map_err(io)?;
        let number = section.pictures.len() + 1;
        let file = format!("view-{number:03}.png");
        image.write_png(&self.folder.join(&file)).map_err(io)?;
        let Words { title, caption, link } = words;
        section.pictures.push(Picture {
            file,
            size: [image.width, image.height],
            title: shortened(&title),
            method: match link.is_empty() {
                true => shortened(&caption),
                false => {
                    format!("{}; to open it: {command}, {}", shortened(&caption), shortened(&link))
                }
            },
            ..Picture::default()
        });
        figure.write(&self.folder).map_err(io)?;
        Ok(number)
    }

    /// What is there.
    fn read(&self) -> Result<Figure> {
        let path = self.folder.join(FILE);
        let read = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).ok(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(empty()),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let read = read.filter(|figure: &Figure| figure.sections.len() == 1);
        read.ok_or_else(|| Error::file(&path, "holds no views of the explorer: move it away"))
    }
}

fn empty() -> Figure {
    Figure {
        study: NAME.into(),
        title: "Views kept in the explorer".into(),
        how: vec!["Each as the page showed it when it was added.".into()],
        sections: vec![Section::default()],
        ..Figure::default()
    }
}

/// The lines of a text, as one.
fn shortened(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let letters = lines.join("; ");
    letters.chars().filter(|letter| !letter.is_control()).take(LETTERS).collect()
}
