"""The real Stable Diffusion loader on a tiny folder of the exact same format, and the stand-in."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from metricgold.log_depth import Encoding
from metricgold.model.backbone import load_backbone, load_vae, prepare_backbone, vae_digest
from metricgold.model.parts import widen_conv_in
from metricgold.model.stand_in import new_unet, new_vae, sample_images
from metricgold.params.sections import Backbone, LogDepthRange
from metricgold.storage.files import digest_file, digest_folder

WIDTH = 8  # of the text encoder


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory, tiny):
    """A Stable Diffusion v2 folder in diffusers layout, all of it a thousand times smaller."""
    folder = tmp_path_factory.mktemp("sd2")
    torch.manual_seed(1)
    new_unet(tiny.backbone.stand_in).save_pretrained(folder / "unet")
    new_vae(tiny.backbone.stand_in).save_pretrained(folder / "vae")
    # SD2's own file names another scheduler class; the loader must read it all the same.
    DDIMScheduler(prediction_type="v_prediction", steps_offset=1).save_pretrained(folder / "scheduler")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("DDIMScheduler", "PNDMScheduler"))
    _write_tokenizer(folder / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=6, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=77, bos_token_id=4, eos_token_id=5,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


def _write_tokenizer(folder):
    folder.mkdir()
    vocab = {"a": 0, "b</w>": 1, "ab</w>": 2, "b": 3, "<|startoftext|>": 4, "<|endoftext|>": 5}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)


def prepare(source, out, **params):
    return prepare_backbone(Backbone(source=str(source), **params), LogDepthRange(), {}, out)


def test_a_stable_diffusion_folder_becomes_a_backbone(stable_diffusion, tmp_path):
    parts = load_backbone(prepare(stable_diffusion, tmp_path / "backbone"))
    unet = UNet2DConditionModel.from_pretrained(stable_diffusion / "unet")
    assert parts["unet"].config.in_channels == parts["unet"].conv_in.in_channels == 8
    half = unet.conv_in.weight / 2
    torch.testing.assert_close(parts["unet"].conv_in.weight, torch.cat([half, half], dim=1))
    torch.testing.assert_close(parts["unet"].mid_block.resnets[0].conv1.weight, unet.mid_block.resnets[0].conv1.weight)
    assert parts["scheduler"].config.prediction_type == "v_prediction"
    assert {path.name for path in (tmp_path / "backbone").iterdir()} == {
        "unet", "vae", "scheduler", "empty_prompt", "backbone.json",
    }  # fmt: skip


def test_the_command_has_its_text_encoder(stable_diffusion, tmp_path):
    """A command's process leaves transformers out (metricgold.extras), and this one needs it."""
    (tmp_path / "params.yaml").write_text(f"datasets: [mine]\nbackbone:\n  source: {stable_diffusion}\n")
    command = [sys.executable, "-m", "metricgold.cli", "backbone"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert load_backbone(tmp_path / "models/backbone")["empty_prompt"] is not None


def test_a_fresh_u_net_has_the_source_s_shape_and_none_of_its_weights(stable_diffusion, tmp_path):
    folders = [
        prepare(stable_diffusion, tmp_path / name, fresh_unet=name != "trained") for name in ("trained", "a", "b")
    ]
    trained, fresh, again = (load_backbone(folder) for folder in folders)
    assert fresh["unet"].config == trained["unet"].config
    pairs = list(zip(fresh["unet"].parameters(), trained["unet"].parameters(), strict=True))
    assert not any(torch.equal(one, other) for one, other in pairs if one.ndim > 1)
    assert digest_folder(folders[1]) == digest_folder(folders[2]) and again["unet"].config == fresh["unet"].config
    assert vae_digest(folders[0]) == vae_digest(folders[1])
    made_from = [json.loads((folder / "backbone.json").read_text()) for folder in folders]
    assert "fresh_unet" not in made_from[0] and made_from[1]["fresh_unet"]


def test_the_empty_prompt_is_the_text_encoder_s_answer_to_start_and_end(stable_diffusion, tmp_path):
    parts = load_backbone(prepare(stable_diffusion, tmp_path / "backbone"))
    encoder = CLIPTextModel.from_pretrained(stable_diffusion / "text_encoder")
    with torch.no_grad():
        expected = encoder(torch.tensor([[4, 5]])).last_hidden_state[0]
    torch.testing.assert_close(parts["empty_prompt"].embedding, expected)


def test_widening_keeps_the_activations_for_two_equal_latents(tiny):
    torch.manual_seed(0)
    unet = new_unet(tiny.backbone.stand_in).eval().double()
    latent, context = torch.randn(1, 4, 16, 24).double(), torch.randn(1, 2, 8).double()
    with torch.no_grad():
        before = unet(latent, 500, encoder_hidden_states=context).sample
        wide = widen_conv_in(unet, 4)
        after = wide(torch.cat([latent, latent], dim=1), 500, encoder_hidden_states=context).sample
    torch.testing.assert_close(before, after, atol=1e-6, rtol=1e-6)
    assert widen_conv_in(wide, 4) is wide, "eight channels are taken as they are"
    with pytest.raises(ValueError, match="takes 8 channels, expected 3 or 6"):
        widen_conv_in(wide, 3)


def test_what_it_was_made_from_is_recorded(stable_diffusion, tmp_path):
    made_from = json.loads((prepare(stable_diffusion, tmp_path / "backbone") / "backbone.json").read_text())
    assert made_from["source"] == str(stable_diffusion)
    assert set(made_from["sha256"]) == {
        f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")
    } | {"text_encoder/model.safetensors"}  # fmt: skip


def test_an_eight_channel_u_net_is_taken_as_it_is(stable_diffusion, tmp_path, tiny):
    marigold = shutil.copytree(stable_diffusion, tmp_path / "marigold")
    unet = widen_conv_in(new_unet(tiny.backbone.stand_in), 4)
    with torch.no_grad():
        unet.conv_in.weight.normal_()  # its halves differ, as after Marigold's training
    unet.save_pretrained(marigold / "unet")
    taken = load_backbone(prepare(marigold, tmp_path / "backbone"))["unet"]
    assert all(torch.equal(a, b) for a, b in zip(taken.parameters(), unet.parameters(), strict=True))


def test_a_u_net_that_gives_no_latents_is_refused(stable_diffusion, tmp_path, tiny):
    other = shutil.copytree(stable_diffusion, tmp_path / "other")
    config = dict(new_unet(tiny.backbone.stand_in).config) | {"out_channels": 8}
    UNet2DConditionModel.from_config(config).save_pretrained(other / "unet")
    with pytest.raises(ValueError, match="the U-Net gives 8 channels, the VAE's latents have 4"):
        prepare(other, tmp_path / "backbone")


def test_the_first_place_with_the_right_weights_is_taken(stable_diffusion, tmp_path, caplog):
    """A source that is gone, one that is cut short, one with other weights: the fourth is read and recorded."""
    short, other = (shutil.copytree(stable_diffusion, tmp_path / name) for name in ("short", "other"))
    name = "vae/diffusion_pytorch_model.safetensors"
    (short / name).write_bytes((short / name).read_bytes()[:-1])
    shutil.copy(stable_diffusion / "unet" / "diffusion_pytorch_model.safetensors", other / name)
    mirrors = [{"source": str(place)} for place in (short, other, stable_diffusion)]
    sha256 = {"vae": digest_file(stable_diffusion / name)}
    out = prepare("no/model", tmp_path / "backbone", mirrors=mirrors, sha256=sha256)
    made_from = json.loads((out / "backbone.json").read_text())
    assert (made_from["source"], made_from["sha256"][name]) == (str(stable_diffusion), sha256["vae"])
    for fault in ("'no/model' is not a folder", "short/vae/.* cannot be read", f"other/vae/.* is {sha256['vae']}"):
        assert re.search(fault, caplog.text)


def test_what_is_wrong_with_every_place_is_said(stable_diffusion, tmp_path):
    mirrors = [{"source": str(stable_diffusion)}]
    with pytest.raises(ValueError, match=rf"(?s)'no/model' is not a folder.*has sha256.*sha256\.unet is {'0' * 64}"):
        prepare("no/model", tmp_path / "backbone", mirrors=mirrors, sha256={"unet": "0" * 64})
    assert not (tmp_path / "backbone").exists()
    with pytest.raises(ValueError, match=r"sha256\.unet"):
        Backbone(sha256={"unet": "no digest"})


def test_pickled_weights_are_not_read(stable_diffusion, tmp_path):
    other = shutil.copytree(stable_diffusion, tmp_path / "other")
    weights = other / "text_encoder" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ValueError, match=r"model\.safetensors is missing: weights are read from safetensors only"):
        prepare(other, tmp_path / "backbone")


@pytest.mark.parametrize(
    "config, message",
    [
        ({"prediction_type": "v_prediction", "timestep_spacing": "leading"}, None),  # SD2, Marigold v1.0
        ({"prediction_type": "epsilon", "timestep_spacing": "leading"}, None),  # SD2-base
        ({"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}, None),
        ({"prediction_type": "flow", "timestep_spacing": "trailing"}, "prediction_type 'flow' is not known"),
        ({"prediction_type": "epsilon", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}, "got epsilon"),
        ({"prediction_type": "sample", "timestep_spacing": "leading", "rescale_betas_zero_snr": True}, "never visits"),
    ],
)
def test_a_schedule_that_contradicts_itself_is_refused(stable_diffusion, tmp_path, config, message):
    other = shutil.copytree(stable_diffusion, tmp_path / "other")
    path = other / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if message is None:
        taken = load_backbone(prepare(other, tmp_path / "backbone"))["scheduler"].config
        assert {key: taken[key] for key in config} == config
    else:
        with pytest.raises(ValueError, match=rf"other/scheduler: .*{message}"):
            prepare(other, tmp_path / "backbone")


@pytest.mark.parametrize("revision", [None, "main", "ABCDEF" * 7])
def test_a_hub_id_must_be_pinned_to_a_commit(tmp_path, revision):
    with pytest.raises(ValueError, match=r"'no-such/model' is not a folder.*40 hex digits"):
        prepare("no-such/model", tmp_path / "backbone", revision=revision)
    assert not (tmp_path / "backbone").exists()


def test_a_hub_that_cannot_be_reached_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"'no-such/model' at 0{40} cannot be fetched"):
        prepare("no-such/model", tmp_path / "backbone", revision="0" * 40)


def test_a_folder_that_is_no_stable_diffusion_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is not a Stable Diffusion folder: unet/ is missing"):
        prepare(tmp_path / "empty", tmp_path / "backbone")
    with pytest.raises(ValueError, match=r"backbone\.json is missing"):
        load_backbone(tmp_path / "empty")


def test_a_text_encoder_of_another_width_is_refused(stable_diffusion, tmp_path, tiny):
    other = shutil.copytree(stable_diffusion, tmp_path / "other")
    params = tiny.backbone.stand_in.model_copy(update={"text_width": 16})
    new_unet(params).save_pretrained(other / "unet")
    with pytest.raises(ValueError, match="text encoder is 8 wide, the U-Net expects 16"):
        prepare(other, tmp_path / "backbone")


def test_the_stand_in_is_of_the_same_classes_and_files(stable_diffusion, tmp_path, tiny_backbone):
    real = prepare(stable_diffusion, tmp_path / "backbone")
    names = {folder: sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
             for folder in (real, tiny_backbone)}  # fmt: skip
    assert names[real] == names[tiny_backbone]
    parts = load_backbone(tiny_backbone)
    assert isinstance(parts["vae"], AutoencoderKL) and isinstance(parts["unet"], UNet2DConditionModel)


def test_the_stand_in_s_latents_have_unit_variance_once_scaled(tiny_backbone, tiny_raw, tiny):
    from metricgold.datasets.readers import open_dataset
    from metricgold.model.vae import encode_rgb, rgb_to_tensor

    vae = load_backbone(tiny_backbone)["vae"].eval()
    with torch.no_grad():
        latents = [
            encode_rgb(vae, rgb_to_tensor(frame.rgb[None]))
            for frame in open_dataset(tiny.datasets[0], tiny_raw, split="train")
        ]
    assert 0.3 < (torch.cat(latents).std() * vae.config.scaling_factor).item() < 3


def test_equal_inputs_equal_bytes(tmp_path, tiny, tiny_raw, tiny_backbone):
    again = prepare_backbone(tiny.backbone, tiny.log_depth, {tiny.datasets[0]: tiny_raw}, tmp_path / "again")
    assert digest_folder(again) == digest_folder(tiny_backbone)
    assert vae_digest(again) == vae_digest(tiny_backbone)


def test_the_stand_in_s_vae_sees_equal_shares_of_its_encodings(tiny, tiny_raw):
    """Photographs stay as they are; depth maps come in one encoding after the other, sky far in all of them."""
    names, of_log = ["log", "linear", "inverse", "sqrt"], tiny.backbone.stand_in.model_copy(update={"num_frames": 8})
    of_all = of_log.model_copy(update={"encodings": names})
    log_depth, raws = tiny.log_depth.to_log_depth(), {tiny.datasets[0]: tiny_raw}
    plain, mixed = (sample_images(params, log_depth, raws) for params in (of_log, of_all))
    assert torch.equal(plain[0::2], mixed[0::2])
    assert len(plain[1::2]) == 8
    for i, (d, e) in enumerate(zip(plain[1::2], mixed[1::2], strict=True)):
        assert torch.equal(e, Encoding(names[i % 4], 0.5, 80.0).of_log_depth(d))
        assert (e[d == 1] > 1 - 1e-6).all()


@pytest.mark.parametrize(
    "part, same", [("decoder.conv_out.bias", True), ("post_quant_conv.bias", True), ("quant_conv.bias", False),
                   ("encoder.conv_in.bias", False)]
)  # fmt: skip
def test_the_vae_s_digest_is_that_of_what_makes_latents(tiny_backbone, tmp_path, part, same):
    other = shutil.copytree(tiny_backbone, tmp_path / "backbone")
    vae = load_vae(other)
    with torch.no_grad():
        vae.get_parameter(part)[0] += 1e-3
    vae.register_to_config(scaling_factor=0.5, sample_size=7)  # latents are stored unscaled
    vae.save_pretrained(other / "vae")
    assert (vae_digest(other) == vae_digest(tiny_backbone)) == same


def test_the_vae_s_digest_knows_layers_that_weights_do_not_show(tiny_backbone, tmp_path):
    other = shutil.copytree(tiny_backbone, tmp_path / "backbone")
    path = other / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"norm_num_groups": 4}))
    assert vae_digest(other) != vae_digest(tiny_backbone)


def test_a_vae_that_cannot_be_hashed_is_named(tiny_backbone, tmp_path):
    with pytest.raises(ValueError, match="is not a backbone: vae/ is missing"):
        vae_digest(tmp_path)
    other = shutil.copytree(tiny_backbone, tmp_path / "backbone")
    weights = other / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read: .*run `metricgold backbone` again"):
        vae_digest(other)


@pytest.mark.parametrize("part", ["unet", "vae", "empty_prompt"])
def test_a_backbone_s_weights_are_never_unpickled(tiny_backbone, tmp_path, part):
    other = shutil.copytree(tiny_backbone, tmp_path / "other")
    weights = other / part / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ValueError, match=r"other is not a complete backbone: .*safetensors"):
        load_backbone(other)
    if part == "vae":
        with pytest.raises(ValueError, match="other/vae is not a complete VAE"):
            load_vae(other)


def test_a_folder_of_others_is_not_replaced_by_a_backbone(tiny, tmp_path):
    """Such as weights that somebody put there by hand."""
    (tmp_path / "unet").mkdir()
    with pytest.raises(FileExistsError, match=f"{tmp_path} holds none of backbone.json: it was not made here"):
        prepare_backbone(tiny.backbone, tiny.log_depth, {}, tmp_path)
    assert (tmp_path / "unet").is_dir()
