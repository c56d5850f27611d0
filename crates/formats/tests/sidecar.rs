//! What lies beside weights: how images are prepared, by the files that timm and Hugging Face write.

use std::fs;

use zfnet_formats::sidecar::{Sidecar, parse, read_sidecars};
use zfnet_formats::{Preprocessing, Resize};

const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// As timm 1.0 saves `vgg16.tv_in1k`; `create_transform` makes of it: shortest side to 256, bilinear, the middle 224 x 224.
const TIMM: &str = r#"{"architecture":"vgg16","num_classes":1000,"num_features":4096,"pretrained_cfg":{"tag":"tv_in1k",
    "custom_load":false,"input_size":[3,224,224],"fixed_input_size":false,"interpolation":"bilinear","crop_pct":0.875,
    "crop_mode":"center","mean":[0.485,0.456,0.406],"std":[0.229,0.224,0.225],"num_classes":1000,"pool_size":[7,7],
    "first_conv":"features.0","classifier":"head.fc"}}"#;

fn vgg16() -> Preprocessing {
    Preprocessing {
        scale: 1.0 / 255.0,
        mean: IMAGENET.0.into(),
        mean_size: None,
        std: IMAGENET.1.into(),
        bgr: false,
        resize: Some(Resize::Shortest(256)),
        crop: Some([224, 224]),
        interpolation: Some("bilinear".into()),
        antialias: Some(true),
    }
}

fn timm(text: &str) -> Sidecar {
    parse(Some(text), None)
}

fn preprocessor(text: &str) -> Result<Preprocessing, String> {
    let sidecar = parse(None, Some(text));
    sidecar.preprocessing.ok_or_else(|| sidecar.notes.join("; "))
}

#[test]
fn timms_settings_are_its_transform() {
    let sidecar = timm(TIMM);
    assert_eq!(sidecar.preprocessing, Some(vgg16()));
    assert_eq!(sidecar.notes, ["the preprocessing is that of config.json"]);
    let renamed = TIMM.replace("pretrained_cfg", "default_cfg");
    assert_eq!(timm(&renamed).preprocessing, Some(vgg16()));
    // As it was at first, all in one.
    let flat = TIMM.replace(r#""pretrained_cfg":{"#, "").replace("}}", "}");
    assert_eq!(timm(&flat).preprocessing, Some(vgg16()));
    // The others are what `create_transform` of timm 1.0.31 makes: Resize(235), Resize((384, 384)).
    for (from, to, resize, crop) in [
        ("0.875", "0.95", Resize::Shortest(235), 224),
        ("0.875", "0.9", Resize::Shortest(248), 224),
        (r#""crop_pct":0.875,"#, "", Resize::Shortest(256), 224),
        ("center", "squash", Resize::Squash([256, 256]), 224),
    ] {
        let found = timm(&TIMM.replace(from, to)).preprocessing.unwrap();
        assert_eq!((found.resize, found.crop), (Some(resize), Some([crop, crop])), "{to}");
    }
    let found = timm(&TIMM.replace(r#""interpolation":"bilinear","#, "")).preprocessing.unwrap();
    assert_eq!(found.interpolation.as_deref(), Some("bicubic"));
    let random = timm(&TIMM.replace("bilinear", "random"));
    assert_eq!(random.preprocessing, Some(vgg16()));
    assert!(random.notes[1].contains("config.json: the interpolation is bilinear"), "{random:?}");
}

#[test]
fn what_timm_does_and_we_do_not_is_said() {
    for (from, to, words) in [
        ("center", "border", "found \"border\""),
        ("[3,224,224]", "[3,224,192]", "224 x 192 that is not square"),
        ("[3,224,224]", "[3,224]", "input_size"),
        ("[3,224,224]", "[3,0,0]", "sizes from 1"),
        ("[3,224,224]", "[1,224,224]", "a value for each channel, found 3"),
        ("bilinear", "hamming", "\"hamming\" is not known"),
        ("0.875", "1.5", "crop_pct from 0.01 to 1, found 1.5"),
        ("0.875", "1e-300", "crop_pct"),
        ("0.229", "0", "above 0"),
        ("0.485", "\"red\"", "numbers for mean"),
        ("0.485", "1e300", "numbers for mean"),
    ] {
        let sidecar = timm(&TIMM.replace(from, to));
        assert_eq!(sidecar.preprocessing, None);
        let note = &sidecar.notes[0];
        assert!(note.starts_with("the preprocessing of config.json cannot be used: "), "{note}");
        assert!(note.contains(words), "{note}, expected {words}");
    }
}

#[test]
fn hugging_faces_settings_are_its_processors() {
    // As google/vit-base-patch16-224 has it: a square whatever the image's shape, no crop.
    let half = |resize, crop, interpolation: &str| Preprocessing {
        scale: 1.0 / 255.0,
        mean: vec![0.5; 3],
        std: vec![0.5; 3],
        resize: Some(resize),
        crop,
        interpolation: Some(interpolation.into()),
        antialias: Some(true),
        ..Preprocessing::default()
    };
    let norm = r#""image_mean":[0.5,0.5,0.5],"image_std":[0.5,0.5,0.5]"#;
    for (settings, expected) in [
        (
            r#""do_normalize":true,"do_resize":true,"resample":2,"size":224"#,
            half(Resize::Squash([224, 224]), None, "bilinear"),
        ),
        (
            r#""image_processor_type":"ViTImageProcessor","do_rescale":true,"rescale_factor":0.00392156862745098,"resample":2,"size":{"height":224,"width":192}"#,
            half(Resize::Squash([224, 192]), None, "bilinear"),
        ),
        // As microsoft/resnet-50: 224 / 0.875 = 256, then the middle.
        (
            r#""feature_extractor_type":"ConvNextFeatureExtractor","crop_pct":0.875,"do_resize":true,"resample":3,"size":224"#,
            half(Resize::Shortest(256), Some([224, 224]), "bicubic"),
        ),
        (
            r#""image_processor_type":"ConvNextImageProcessor","crop_pct":0.875,"resample":3,"size":{"shortest_edge":384}"#,
            half(Resize::Squash([384, 384]), None, "bicubic"),
        ),
        (
            r#""do_center_crop":true,"crop_size":{"height":200,"width":210},"resample":0,"size":{"shortest_edge":224}"#,
            half(Resize::Shortest(224), Some([200, 210]), "nearest"),
        ),
        (
            r#""feature_extractor_type":"CLIPFeatureExtractor","crop_size":224,"do_center_crop":true,"resample":1,"size":256"#,
            half(Resize::Shortest(256), Some([224, 224]), "lanczos"),
        ),
        (
            r#""do_center_crop":false,"crop_size":224,"resample":4,"size":[64,32]"#,
            half(Resize::Squash([64, 32]), None, "box"),
        ),
    ] {
        assert_eq!(preprocessor(&format!("{{{settings},{norm}}}")), Ok(expected), "{settings}");
    }
    // A number alone is known for a square, or known for the shortest side, or taken for a square.
    for (class, expected, notes) in [
        ("ViTImageProcessor", Resize::Squash([224; 2]), 1),
        ("DeiTFeatureExtractor", Resize::Squash([224; 2]), 1),
        ("MobileViTImageProcessor", Resize::Shortest(224), 1),
        ("BitImageProcessor", Resize::Shortest(224), 1),
        ("LevitImageProcessor", Resize::Squash([224; 2]), 2),
        ("", Resize::Squash([224; 2]), 2),
    ] {
        let settings = format!(r#"{{"image_processor_type":"{class}","size":224,{norm}}}"#);
        let sidecar = parse(None, Some(&settings));
        assert_eq!(sidecar.preprocessing.unwrap().resize, Some(expected), "{class}");
        assert_eq!(sidecar.notes.len(), notes, "{class}: {:?}", sidecar.notes);
        let assumed = |note: &String| note.contains("the size 224 is taken for rows and columns");
        assert_eq!(sidecar.notes.iter().any(assumed), notes == 2, "{:?}", sidecar.notes);
    }
    // Bytes as they are, blue first.
    let raw = r#"{"do_resize":false,"size":224,"do_rescale":false,"do_normalize":false,"do_flip_channel_order":true}"#;
    let raw = preprocessor(raw).unwrap();
    assert_eq!((raw.scale, raw.bgr, raw.resize, raw.crop), (1.0, true, None, None));
    assert_eq!((raw.mean, raw.std, raw.interpolation), (vec![0.0; 3], vec![1.0; 3], None));
}

#[test]
fn what_hugging_face_does_and_we_do_not_is_said() {
    let norm = r#""image_mean":[0.5,0.5,0.5],"image_std":[0.5,0.5,0.5]"#;
    for (settings, words) in [
        (r#""do_pad":true"#, "do_pad is not known"),
        (r#""size":{"longest_edge":224}"#, "shortest_edge, or by height and width"),
        (
            r#""size":{"shortest_edge":224,"longest_edge":300}"#,
            "shortest_edge, or by height and width",
        ),
        (r#""size":-1"#, "sizes from 1"),
        (r#""size":224,"resample":5"#, "the resampling 5"),
        (r#""rescale_factor":0"#, "above 0"),
        (r#""do_resize":true"#, "does not say to what size"),
        (r#""do_center_crop":true"#, "does not say to what size"),
        (r#""do_resize":"yes""#, "true or false"),
        (
            r#""size":{"shortest_edge":224},"crop_size":{"height":200,"width":256}"#,
            "crops 200 x 256 of images that may be only 224 x 224",
        ),
        (
            r#""size":[224,192],"crop_size":224"#,
            "crops 224 x 224 of images that may be only 224 x 192",
        ),
    ] {
        let error = preprocessor(&format!("{{{settings},{norm}}}")).unwrap_err();
        assert!(error.contains(words), "{error}, expected {words}");
    }
    let error = preprocessor(r#"{"size":224}"#).unwrap_err();
    assert!(error.contains("image_mean is missing"), "{error}");
}

#[test]
fn classes_are_named_by_number_or_in_order() {
    let of = |text: &str| timm(text).classes;
    assert_eq!(
        of(r#"{"id2label":{"1":"shark","0":"tench","2":"ray"}}"#),
        ["tench", "shark", "ray"]
    );
    assert_eq!(of(r#"{"id2label":{"0":"LABEL_0","1":"LABEL_1"}}"#), [""; 0]);
    assert_eq!(of(r#"{"label_names":["n1","n2"]}"#), ["n1", "n2"]);
    let described =
        r#"{"label_names":["n1","n2"],"label_descriptions":{"n2":"shark","n1":"tench"}}"#;
    assert_eq!(of(described), ["tench", "shark"]);
    for wrong in [r#"{"0":"a","2":"b"}"#, r#"{"zero":"a"}"#, r#"{"0":1}"#, r#"{"0":"a","00":"b"}"#]
    {
        let sidecar = timm(&format!(r#"{{"id2label":{wrong}}}"#));
        assert!(sidecar.classes.is_empty());
        assert!(
            sidecar.notes[0].contains("cannot be used: expected id2label"),
            "{:?}",
            sidecar.notes
        );
    }
}

#[test]
fn files_are_looked_for_beside_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    assert_eq!(read_sidecars(folder.path()), None);
    write("config.json", r#"{"id2label":{"0":"tench"},"model_type":"resnet"}"#);
    write(
        "preprocessor_config.json",
        r#"{"size":[224,224],"image_mean":[0,0,0],"image_std":[1,1,1]}"#,
    );
    let sidecar = read_sidecars(folder.path()).unwrap();
    assert_eq!(sidecar.preprocessing.unwrap().resize, Some(Resize::Squash([224, 224])));
    assert_eq!(sidecar.classes, ["tench"]);
    assert_eq!(
        sidecar.notes,
        [
            "the preprocessing is that of preprocessor_config.json",
            "the classes are named as in config.json, 1 of them",
        ]
    );
    // timm's own says more of how its networks were tested.
    write("config.json", TIMM);
    assert_eq!(read_sidecars(folder.path()).unwrap().preprocessing, Some(vgg16()));
    // Another program's, which does not keep weights from being read.
    let told = |words: &str| {
        let sidecar = read_sidecars(folder.path()).unwrap();
        let [of_preprocessor, note] = &sidecar.notes[..] else { panic!("{:?}", sidecar.notes) };
        assert!(of_preprocessor.ends_with("that of preprocessor_config.json"), "{of_preprocessor}");
        assert!(note.starts_with("config.json: not used: ") && note.contains(words), "{note}");
        assert!(sidecar.preprocessing.is_some() && sidecar.classes.is_empty());
    };
    for other in ["{\"mean\":", "[1,2]", "", "port = 80", &"[".repeat(1_000_000)] {
        write("config.json", other);
        told("expected a JSON object");
    }
    fs::write(folder.path().join("config.json"), b"name = caf\xe9").unwrap();
    told("UTF-8");
    write("config.json", &" ".repeat(9 << 20));
    told("expected at most 8388608 bytes, found 9437184");
    fs::remove_file(folder.path().join("config.json")).unwrap();
    fs::create_dir(folder.path().join("config.json")).unwrap();
    told("is no file");
    fs::remove_file(folder.path().join("preprocessor_config.json")).unwrap();
    let alone = read_sidecars(folder.path()).unwrap();
    assert_eq!((alone.preprocessing, alone.notes.len()), (None, 1));
}
