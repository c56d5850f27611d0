//! The pages as a reader's browser finds them: every link leads somewhere, every map and peak is
//! there, and no name of a file can break out of its place.

use std::fs;
use std::path::Path;

use crate::common::page::attributes;
use zfnet::picture::Image;
use zfnet::report::figure::{Figure, Picture, Section, Table};
use zfnet::report::projections::{self, ImageProjections, LayerProjections, Projections, Unit};
use zfnet::report::top9::{self, FeatureLayer, Header, Map, ProjectedPeak, Top9, Writer};

const HOSTILE: &str = "val/a\"><script>alert('1')</script>&amp;\u{2028}<!--/x.jpg";

fn peak(i: usize, field: usize) -> ProjectedPeak {
    let side = field as i64;
    ProjectedPeak {
        image: if i == 0 { HOSTILE.into() } else { format!("val/cat/{i}.jpg") },
        class: if i == 0 { "<b>cat</b>".into() } else { "cat".into() },
        y: i,
        x: 2 * i,
        value: 9.5 - i as f32,
        field_box: [-3, 4, side - 3, side + 4],
        patch: [-3.25, 4.5, 0.0, 7.125],
        projection: Image::filled(field, field, 10 * i as u8),
        photo: Image::filled(field, field, 200 - 10 * i as u8),
    }
}

/// 40 maps of which every seventh is dead, and one has fewer peaks.
fn layer(name: &str, field: usize) -> FeatureLayer {
    let peaks = |map| match map {
        _ if map % 7 == 0 => 0,
        12 => 2,
        _ => 9,
    };
    let rows = (0..40)
        .map(|map| Map { map, peaks: (0..peaks(map)).map(|i| peak(i, field)).collect() })
        .collect();
    FeatureLayer { name: name.into(), maps: 64, field: [field; 2], jump: 4, start: -3, rows }
}

fn top9() -> Top9 {
    let dead = FeatureLayer {
        rows: (0..3).map(|map| Map { map, peaks: vec![] }).collect(),
        ..layer("dead", 7)
    };
    Top9 {
        header: Header { title: HOSTILE.into(), images: 3925, input: [64; 2], ..Header::default() },
        layers: vec![layer("conv1", 7), layer("../conv 2", 90), dead, layer("conv1", 200)],
    }
}

/// See [`crate::common::page::check_links`]; and no name of a file or class got out of its place.
fn check_links(out: &Path, html: &str) {
    crate::common::page::check_links(out, html);
    assert!(!html.contains("alert('1')</"), "a name became a script");
    assert!(!html.contains("<b>cat"), "a class became markup");
}

#[test]
fn every_map_has_its_place_and_every_link_leads_somewhere() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("new/page");
    let index = top9::write(&out, &top9()).unwrap();
    assert_eq!(index, out.join("index.html"));
    let html = fs::read_to_string(index).unwrap();
    check_links(&out, &html);
    for slug in ["conv1", "---conv-2", "conv1-2"] {
        assert!(html.contains(&format!("id=\"{slug}\"")), "{slug}");
        for map in 0..40 {
            assert!(html.contains(&format!("id=\"{slug}/{map}\"")), "{slug} {map}");
        }
    }
    assert_eq!(html.matches("never above zero").count(), 3 * 6 + 3);
    assert!(!out.join("dead").exists());
    assert!(!html.contains("http-equiv"));
}

#[test]
fn the_data_hold_every_peak() {
    let folder = tempfile::tempdir().unwrap();
    let want = top9();
    let index = top9::write(folder.path(), &want).unwrap();
    let json = fs::read(folder.path().join("top9.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["title"], HOSTILE);
    for (l, layer) in want.layers.iter().enumerate() {
        for (m, map) in layer.rows.iter().enumerate() {
            let peaks = json["layers"][l]["rows"][m]["peaks"].as_array().unwrap();
            assert_eq!(peaks.len(), map.peaks.len());
            for (peak, found) in map.peaks.iter().zip(peaks) {
                assert_eq!(found["image"], *peak.image);
                assert_eq!(found["value"], f64::from(peak.value));
                assert_eq!(found["y"], peak.y);
                assert_eq!(found["patch"], serde_json::json!(peak.patch));
                assert_eq!(found["field_box"], serde_json::json!(peak.field_box));
                assert!(found.get("photo").is_none());
            }
        }
    }
    // and so does the page's own, where an image is named once and then numbered
    let html = fs::read_to_string(index).unwrap();
    let inline = html.split("id=\"page.data\">").nth(1).unwrap().split("</script>").next().unwrap();
    let inline: serde_json::Value = serde_json::from_str(inline).unwrap();
    assert_eq!(inline["images"].as_array().unwrap().len(), 9);
    let row = inline["layers"][0]["rows"][1].as_array().unwrap();
    assert_eq!(row.len(), 1 + 9 * 8);
    assert_eq!(inline["images"][row[1].as_u64().unwrap() as usize][0], HOSTILE);
    assert_eq!(inline["layers"][2]["grid"], serde_json::Value::Null);
}

/// Reads a tile back from its sheet by the numbers that the page's script gets.
#[test]
fn tiles_lie_where_the_page_looks_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let index = top9::write(folder.path(), &top9()).unwrap();
    let html = fs::read_to_string(index).unwrap();
    let inline = html.split("id=\"page.data\">").nth(1).unwrap().split("</script>").next().unwrap();
    let inline: serde_json::Value = serde_json::from_str(inline).unwrap();
    for layer in inline["layers"].as_array().unwrap() {
        let Some(grid) = layer["grid"].as_array() else {
            continue;
        };
        let grid: Vec<usize> = grid.iter().map(|n| n.as_u64().unwrap() as usize).collect();
        let [side, gutter, pitch, columns, blocks, width, _] = grid[..] else { panic!() };
        let slug = layer["slug"].as_str().unwrap();
        for (row, i) in [(1, 0), (1, 8), (12, 1), (39, 4)] {
            let name = format!("{slug}/projections-{:03}.png", row / blocks);
            let sheet = image::open(folder.path().join(name)).unwrap().to_rgb8();
            assert_eq!(sheet.width() as usize, width);
            let cell = row % blocks;
            let x = cell % columns * pitch + i % 3 * (side + gutter) + side / 2;
            let y = cell / columns * pitch + i / 3 * (side + gutter) + side / 2;
            assert_eq!(
                sheet.get_pixel(x as u32, y as u32).0,
                [10 * i as u8; 3],
                "{slug} {row} {i}"
            );
        }
    }
}

#[test]
fn a_page_can_be_renewed_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    top9::write(folder.path(), &top9()).unwrap();
    let header = Header {
        status: Some("epoch 3 of 12, training".into()),
        refresh: Some(20),
        ..Header::default()
    };
    let mut writer = Writer::new(folder.path(), header).unwrap();
    assert!(writer.map(Map::default()).is_err(), "a map before any layer");
    writer.layer(layer("conv1", 7)).unwrap();
    assert!(writer.map(Map { map: 39, peaks: vec![] }).is_err(), "a map twice");
    let html = fs::read_to_string(writer.finish().unwrap()).unwrap();
    check_links(folder.path(), &html);
    assert!(html.contains("epoch 3 of 12, training"));
    assert!(html.contains("http-equiv=\"refresh\" content=\"20\""));
    let mut left = walk(folder.path());
    left.retain(|name| name.ends_with(".tmp"));
    assert!(left.is_empty(), "{left:?}");
}

fn walk(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => names.extend(walk(&path)),
            false => names.push(path.display().to_string()),
        }
    }
    names
}

#[test]
fn single_images_have_their_page() {
    let folder = tempfile::tempdir().unwrap();
    let unit = |map| Unit {
        map,
        y: 3,
        x: 4,
        value: 2.5,
        field_box: [-5, 0, 10, 15],
        projection: Image::filled(20, 20, 128),
        ..Unit::default()
    };
    let layers = ["conv1", "conv/2", "empty"]
        .map(|name| {
            let units = if name == "empty" { vec![] } else { (0..9).map(unit).collect() };
            LayerProjections { name: name.into(), units }
        })
        .to_vec();
    let shown = |name: &str| ImageProjections {
        name: name.into(),
        input: Image::filled(20, 20, 9),
        classes: vec![("<b>cat</b>".into(), 0.75), ("dog".into(), 0.25)],
        layers: layers.clone(),
    };
    let page = Projections {
        title: "one".into(),
        images: vec![shown("a/cat.jpg"), shown("b/cat.jpg"), shown(HOSTILE)],
        ..Projections::default()
    };
    let index = projections::write(folder.path(), &page).unwrap();
    let html = fs::read_to_string(index).unwrap();
    check_links(folder.path(), &html);
    assert!(html.contains("75.0 %"));
    assert!(html.contains("id=\"cat-2.conv-2-8-3-4\""));
    let json = fs::read(folder.path().join("projections.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["images"][2]["layers"][1]["units"][8]["map"], 8);
    assert_eq!(walk(folder.path()).len(), 2 + 3 * (1 + 2 * 9));
}

/// One picture, one table and one alarm, all of hostile names.
fn figure() -> Figure {
    let picture = Picture {
        file: "a.png".into(),
        size: [4, 4],
        title: HOSTILE.into(),
        image: HOSTILE.into(),
        area: Some([1.0, 2.0, 3.5, 4.25]),
        ..Picture::default()
    };
    let table = Table {
        caption: "<b>cat".into(),
        head: vec![String::new(), "x".into()],
        rows: vec![vec!["row".into(), "1".into()]],
        notes: vec!["note".into()],
    };
    let section = Section {
        title: "part".into(),
        alarms: vec!["<b>cat is dead".into()],
        pictures: vec![picture],
        tables: vec![table],
        ..Section::default()
    };
    Figure { study: "test".into(), title: "t".into(), sections: vec![section], ..Figure::default() }
}

#[test]
fn a_figure_has_its_page_and_its_data() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path();
    Image::filled(4, 4, 9).write_png(&out.join("a.png")).unwrap();
    let html = fs::read_to_string(figure().write(out).unwrap()).unwrap();
    check_links(out, &html);
    assert_eq!(attributes(&html, "src"), ["a.png"]);
    assert!(html.contains("&lt;b&gt;cat is dead") && html.contains("Box: 1, 2, 4, 4"), "{html}");
    let read: Figure = serde_json::from_slice(&fs::read(out.join("figure.json")).unwrap()).unwrap();
    assert_eq!(read, figure());
}
