import json

from conversion.default_model.ship import ship
from conversion.default_model.train import DEFAULT_CHECKPOINT


def test_weights_and_configs_go_and_the_code_is_that_of_the_package(tmp_path):
    trained, package = tmp_path / "trained", tmp_path / "package"
    (trained / "training").mkdir(parents=True)
    package.mkdir()
    (package / "left_over.bin").touch()
    (trained / "model.safetensors").write_bytes(b"weights")
    (trained / "modeling.py").touch()
    config = {"auto_map": {"AutoModel": "modeling.Model"}, "parts": [{"auto_map": {}, "size": 96}], "name": "ü"}
    (trained / "config.json").write_text(json.dumps(config))
    (trained / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoProcessor": "modeling.Processor"}}))

    ship(trained, package)

    names = ["config.json", "installed_package.py", "model.safetensors", "tokenizer_config.json"]
    assert sorted(path.name for path in package.iterdir()) == names
    assert (package / "installed_package.py").read_text() == (DEFAULT_CHECKPOINT / "installed_package.py").read_text()
    assert (package / "model.safetensors").read_bytes() == b"weights"
    auto_map = json.loads((DEFAULT_CHECKPOINT / "config.json").read_text())["auto_map"]
    entries = {"auto_map": auto_map, "parts": [{"size": 96}], "name": "ü"}
    assert json.loads((package / "config.json").read_text()) == entries
    assert json.loads((package / "tokenizer_config.json").read_text()) == {}
