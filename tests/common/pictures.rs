//! A few pictures to train on.

use std::path::Path;

/// Makes a folder with twelve synthetic pictures of 9×9 pixels.
pub fn pictures(folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    for index in 0..12 {
        let picture = cyanea::data::synthetic::render(1, index, 9).unwrap();
        picture.save(folder.join(format!("{index}.png"))).unwrap();
    }
}
