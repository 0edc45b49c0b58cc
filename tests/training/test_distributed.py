"""Two processes are one run: the same gradients, images and figures as one process, and a lost process loses nothing."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import process_driver
import pytest
import torch
from training_toys import Images, assert_equal_tensors, last_checkpoint, rows, run, tensors_of

from omnivae.cli.main import main
from omnivae.cli.train import read_run
from omnivae.training import TrainingConfig
from omnivae.training import distributed as dist
from omnivae.training import world as place_of
from omnivae.training.launch import launch
from omnivae.training.order import ValidationOrder
from omnivae.training.sharded import check_sharded

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes end by signals here")

COMPARED = ("nll", "l1", "gan", "broken", "pairs", "pairs_broken")
TIMED = ("train/images_per_s", "train/data_wait_share")
DRIVER = str(Path(process_driver.__file__))
#: Seconds after which a test that hangs fails; loaded machines start processes slowly.
LIMIT_S = 240


@contextlib.contextmanager
def limited(seconds=LIMIT_S):
    def late(number, frame):
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True, scope="module")
def _environment():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in (*place_of.ENVIRONMENT, "LOCAL_WORLD_SIZE", "OMNIVAE_DEBUG"):
            patch.delenv(name, raising=False)
        yield


def in_two(directory, *scenarios):
    with limited():
        launch([sys.executable, DRIVER, str(directory), *scenarios], TrainingConfig(devices=2))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run of which one process was killed: its directory, its last step, and what was said."""
    directory = tmp_path_factory.mktemp("two")
    with pytest.raises(ChildProcessError) as error:
        in_two(directory, "lost")
    return directory, last_checkpoint(directory / "lost")["global_step"], str(error.value)


@pytest.fixture(scope="module")
def two(killed):
    """Every scenario in two processes, one after the other; the killed run is continued."""
    directory = killed[0]
    in_two(directory, *COMPARED, "sharded", "noisy", "stopped", "whole", "refused", "lost")
    return directory


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The scenarios that are compared, in this process."""
    directory = tmp_path_factory.mktemp("one")
    torch.manual_seed(0)
    for name in COMPARED:
        process_driver.SCENARIOS[name](directory / name)
    return directory


# -- the same run


@pytest.mark.parametrize("name", COMPARED)
def test_the_gradients_are_those_of_one_process_with_the_whole_batch(name, one, two):
    expected = torch.load(one / name / "gradients-0.pt", weights_only=True)
    assert len(expected) == 8
    # The balance of the GAN is a float32 number.
    tolerance = 1e-5 if name in ("gan", "broken") else 1e-9
    for rank in (0, 1):
        found = torch.load(two / name / f"gradients-{rank}.pt", weights_only=True)
        for step, (left, right) in enumerate(zip(found, expected, strict=True)):
            assert left.keys() == right.keys()
            for key in left:
                difference = (left[key] - right[key]).norm() / right[key].norm().clamp(min=1e-12)
                assert difference < tolerance, (step, key, float(difference))
    # What no loss looks at has no gradient in two processes either.
    assert any("log_scale" in key for key in expected[-1]) == (name == "nll")


@pytest.mark.parametrize("name", COMPARED)
def test_the_figures_are_those_of_one_process(name, one, two):
    # A step that is left out has no latent.
    for table, length in (("metrics.csv", 10), ("kl_per_dimension.csv", 8 - name.endswith("broken"))):
        left, right = rows(two / name, table), rows(one / name, table)
        assert len(left) == len(right) == length
        for a, b in zip(left, right, strict=True):
            assert a.keys() == b.keys()
            assert {k: v for k, v in a.items() if k not in TIMED} == pytest.approx(
                {k: v for k, v in b.items() if k not in TIMED}, rel=2e-5, abs=1e-7, nan_ok=True
            )


@pytest.mark.parametrize("name", COMPARED)
def test_the_best_and_the_last_checkpoint_are_those_of_one_process(name, one, two):
    from omnivae.training.checkpoint_io import read_tree

    for file in ("best", "last"):
        left, right = (read_tree(d / name / "checkpoints" / f"{file}.safetensors") for d in (two, one))
        assert left["global_step"] == right["global_step"]
        for part in ("state_dict", "current_model_state"):
            for key, value in right[part].items():
                assert torch.allclose(left[part][key].double(), value.double(), rtol=1e-5, atol=1e-7), (file, part, key)


@pytest.mark.parametrize("name", COMPARED)
def test_no_image_is_seen_twice_in_an_epoch(name, one, two):
    # A discriminator has a run look at the size of the first image before it starts; several processes try out two images.
    first = name in ("gan", "broken")
    whole = json.loads((one / name / "asked-0.json").read_text())[first:]
    shares = [json.loads((two / name / f"asked-{rank}.json").read_text())[first + 2 :] for rank in (0, 1)]
    batches = len(whole) // 4
    assert batches == (16 if name == "nll" else 8)
    for epoch in range(0, batches, 6):
        seen = [image for share in shares for image in share[2 * epoch : 2 * (epoch + 6)]]
        assert len(set(seen)) == len(seen) == 4 * min(6, batches - epoch)
    # Together they see what one process sees, batch by batch.
    joint = [image for b in range(batches) for share in shares for image in share[2 * b : 2 * b + 2]]
    assert joint == whole


def test_a_batch_that_one_process_cannot_compute_is_left_out_by_both(two):
    table = [row for row in rows(two / "broken") if "train/total" in row]
    skipped = [row["train/skipped_updates"] for row in table]
    assert skipped[-1] >= 1
    assert [row["step"] for row in table] == list(range(1, 9))
    # Only the process that had the image says so.
    records = sorted(path.name for path in (two / "broken" / "flight").iterdir())
    assert len(records) == skipped[-1]
    assert all("-process-" in name for name in records)


def test_each_process_draws_noise_of_its_own(two):
    ends = [torch.load(two / "noisy" / f"end-{rank}.pt", weights_only=True) for rank in (0, 1)]
    for rank, end in enumerate(ends):
        assert len(end["noise"]) == 8
        torch.manual_seed(dist.noise_seed(0, rank))
        assert torch.allclose(end["noise"][0], torch.randn(1, 2, 3)[0], atol=1e-4)
    both = [torch.cat(end["noise"]).flatten() for end in ends]
    assert not torch.isclose(both[0], both[1], atol=1e-3).any()
    # Weights, and the running statistics of batch normalisation, are the same in both all the same.
    assert_equal_tensors(ends[0]["state"], ends[1]["state"])
    assert any("running_mean" in name for name in ends[0]["state"])


def test_validation_batches_are_one_pass_for_any_number_of_processes():
    for images, batch, processes in ((1, 4, 3), (5, 2, 2), (66, 4, 2), (64, 32, 8), (9, 1, 4)):
        shares = [ValidationOrder(images, batch, rank=r, world_size=processes) for r in range(processes)]
        assert len({len(share) for share in shares}) == 1
        assert all(len(list(share)) == len(share) for share in shares)
        counted = [(s.number(i), b) for s in shares for i, b in enumerate(s) if s.counts(i)]
        assert [b for _, b in sorted(counted)] == list(ValidationOrder(images, batch))
        assert sorted(image for _, b in counted for image in b) == list(range(images))


def test_what_one_process_refuses_ends_both_and_is_said_once(two):
    said = [json.loads((two / "refused" / f"said-{rank}.json").read_text()) for rank in (0, 1)]
    assert said == ["SystemExit: 2", "ValueError: rank 1 does not like it"]


# -- stopped, lost, continued


def test_a_signal_to_one_process_stops_both_after_the_same_step(two):
    results = [json.loads((two / "stopped" / f"results-{rank}.json").read_text()) for rank in (0, 1)]
    assert results[0] == results[1]
    step, stopped_by, *end = results[0]
    assert 4 <= step <= 6
    assert stopped_by == "SIGTERM"
    assert end == [8, None]
    assert_same_end(two / "stopped", two / "whole")


def assert_same_end(left, right):
    a, b = last_checkpoint(left), last_checkpoint(right)
    # Weights, average, optimisers of both sides, and the random state of both processes: everything there is.
    assert len(a["rng"]) == len(b["rng"]) == 2
    assert_equal_tensors(tensors_of(a), tensors_of(b))
    tables = [
        [{k: v for k, v in row.items() if k not in TIMED} for row in rows(d) if "train/total" in row]
        for d in (left, right)
    ]
    assert tables[0] == tables[1]


def test_a_killed_process_ends_the_run_with_one_sentence_and_the_run_continues(killed, two):
    _, step, said = killed
    assert re.fullmatch(
        r"the process of rank 1 \(of 2, process id \d+\) was lost after step 4: it was killed, crashed or does not answer; "
        r"the last checkpoint is from step 3, and the same command continues from it",
        said,
    )
    assert step == 3
    assert_same_end(two / "lost", two / "whole")


def test_a_run_continues_with_another_number_of_processes(two, tmp_path, caplog):
    shutil.copytree(two / "whole", tmp_path / "run")
    with caplog.at_level("INFO", "omnivae"):
        result, _, _ = run(
            tmp_path / "run",
            process_driver.model(norm="batch"),
            process_driver.losses("gan"),
            val=Images(66, seed=1),
            **process_driver.SETTINGS | {"max_steps": 10},
        )
    assert (result.step, result.complete) == (10, True)
    assert "continuing with 1 processes a run of 2: same images in the same order" in caplog.text
    assert [row["step"] for row in rows(tmp_path / "run") if "train/total" in row] == list(range(1, 11))


# -- the command

TINY = [
    "--data.path", "digits", "--data.limit", "40", "--model.recipe", "conv_vae", "--model.latent_dim", "3",
    "--model.channels", "[4,8]", "--training.batch_size", "8", "--training.precision", "32", "--training.val_images", "16",
    "--training.checkpoint_every", "2", "--training.draw_every", "1000000", "--report", "false",
]  # fmt: skip


def children_of(pid):
    found = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, timeout=60, check=True)
    pairs = [line.split() for line in found.stdout.splitlines()]
    return [int(child) for child, parent in pairs if int(parent) == pid]


def wait_for(condition):
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("ps"), reason="looks for processes with ps")
def test_the_command_starts_processes_that_do_not_outlive_it(tmp_path, capfd, monkeypatch):
    output = tmp_path / "run"
    command = ["train", *TINY, "--output", str(output), "--training.devices", "2", "--training.max_steps"]
    started = subprocess.Popen([sys.executable, "-m", "omnivae", *command, "1000000"], stderr=subprocess.DEVNULL)
    try:
        wait_for((output / "checkpoints" / "last.safetensors").exists)
        processes = children_of(started.pid)
        assert len(processes) == 2
    finally:
        started.kill()
        started.wait()
    # They notice, save and end.
    wait_for(lambda: all(dist._dead(pid) for pid in processes))
    step = last_checkpoint(output)["global_step"]
    assert step >= 2
    capfd.readouterr()
    with limited():
        assert main([*command, str(step + 2)]) == 0
    captured = capfd.readouterr()
    assert captured.out == f"{step + 2} steps done; the model is in {output / 'model'}\n"
    assert len(re.findall("training, .* validation and .* test images", captured.err)) == 1
    assert last_checkpoint(output)["global_step"] == step + 2
    # What can be refused at once is, before any process is started.
    monkeypatch.setattr("omnivae.jobs.processes.launch", None)
    assert main([*command, "1", "--training.batch_size", "4"]) == 2
    assert "training.batch_size: 8 there, 4 asked" in capfd.readouterr().err


@pytest.mark.slow
def test_two_machines_by_torchrun(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = tmp_path / "run"
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else os.environ
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--master_addr=127.0.0.1"]
    torchrun += [f"--master_port={port}", "--nproc_per_node=1"]
    train = ["-m", "omnivae", "train", *TINY, "--output", str(output), "--training.max_steps", "3", "--distributed"]
    machines = [
        subprocess.Popen(
            [*torchrun, f"--node_rank={node}", *train],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in (0, 1)
    ]
    said = [machine.communicate(timeout=LIMIT_S) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert said[0][0] == f"3 steps done; the model is in {output / 'model'}\n"
    assert said[1][0] == ""
    assert "training, " not in said[1][1]
    assert len(last_checkpoint(output)["rng"]) == 2


# -- in shards


@pytest.mark.parametrize("how", ["whole", "parts", "undivided"])
def test_a_divided_model_is_trained_like_a_whole_one(how, one, two):
    """Left alone, continued, and continued without dividing it: the figures and weights of one process."""
    left, right = rows(two / "sharded" / how), rows(one / "gan")
    assert len(left) == len(right) == 10
    for a, b in zip(left, right, strict=True):
        assert {k: v for k, v in a.items() if k not in TIMED} == pytest.approx(
            {k: v for k, v in b.items() if k not in TIMED}, rel=2e-5, abs=1e-7
        )
    found, expected = last_checkpoint(two / "sharded" / how), last_checkpoint(one / "gan")
    assert found["global_step"] == expected["global_step"] == 8
    # The same names and shapes: a checkpoint does not tell that the model was divided.
    for part in ("state_dict", "current_model_state", "optimizer_states", "averaging_state", "callbacks"):
        ours, theirs = tensors_of(found[part]), tensors_of(expected[part])
        if part == "callbacks":
            ours, theirs = ({k: v for k, v in t.items() if "Opponents" in k} for t in (ours, theirs))
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert torch.allclose(ours[key].double(), value.double(), rtol=2e-5, atol=1e-7), (part, key)


def test_a_divided_model_really_is_divided_and_is_drawn_and_saved_as_a_whole(one, two):
    sizes = [json.loads((two / "sharded" / "whole" / f"share-{rank}.json").read_text()) for rank in (0, 1)]
    whole = sum(value.numel() for value in process_driver.model().parameters())
    # The scale of the likelihood is a single number, which both have.
    assert sum(sizes) == whole + 1
    assert max(sizes) < 0.7 * whole
    drawn = json.loads((two / "sharded" / "drawn-8.json").read_text())
    average = process_driver.model()
    state = last_checkpoint(one / "gan")["state_dict"]
    average.load_state_dict({k.removeprefix("vae."): v.float() for k, v in state.items() if k.startswith("vae.")})
    with torch.no_grad():
        assert average.eval()(process_driver.ONE).reconstruction.sum().item() == pytest.approx(drawn, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compile": True}, r"training\.compile=True with training\.strategy=fsdp"),
        ({"channels_last": True}, r"training\.channels_last=True with training\.strategy=fsdp"),
        ({"precision": "16"}, r"training\.precision=16 with training\.strategy=fsdp; set it to bf16 or 32"),
    ],
)
def test_what_cannot_be_divided_is_refused(settings, message):
    check_sharded(TrainingConfig(strategy="fsdp"), process_driver.losses("gan"))
    with pytest.raises(ValueError, match=message):
        check_sharded(TrainingConfig(strategy="fsdp", **settings), {})


def test_a_single_process_divides_nothing(tmp_path):
    with pytest.raises(
        ValueError, match=r"training\.strategy=fsdp, which divides a model among several processes, in a si"
    ):
        run(tmp_path, strategy="fsdp")


# -- refusals, and who is who


def test_devices_in_a_single_process_name_torchrun(tmp_path):
    with pytest.raises(ValueError, match=r"training\.devices=2.*torchrun --nproc_per_node=2"):
        run(tmp_path, devices=2)
    assert not (tmp_path / "checkpoints").exists()


@pytest.fixture
def place(monkeypatch):
    def set_place(**values):
        names = {
            "RANK": 0,
            "WORLD_SIZE": 4,
            "LOCAL_RANK": 0,
            "LOCAL_WORLD_SIZE": 2,
            "MASTER_ADDR": "x",
            "MASTER_PORT": 1,
        }
        for name, value in (names | values).items():
            monkeypatch.setenv(name, str(value))
        return place_of.world()

    return set_place


def test_the_place_comes_from_the_environment(place):
    assert not place_of.launched()
    assert place_of.world() == place_of.World(0, 1, 0, 1)
    assert place(RANK=3, LOCAL_RANK=1) == place_of.World(rank=3, size=4, local_rank=1, local_size=2)
    assert place_of.launched()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": 3}, r"training\.devices=3 in a launch of 2 processes on each machine"),
        ({"num_nodes": 3}, r"training\.num_nodes=3 in a launch of 2 machines"),
        ({"batch_size": 6}, r"training\.batch_size=6 for 4 processes.*multiple of 4, such as 8"),
        ({"batch_size": 1}, r"training\.batch_size=1 for 4 processes.*such as 4"),
    ],
)
def test_a_launch_and_a_configuration_that_disagree_are_refused(settings, message, place):
    config = {"batch_size": 8} | settings
    with pytest.raises(ValueError, match=message):
        place_of.check_world(TrainingConfig(**config), place())
    place_of.check_world(TrainingConfig(batch_size=8, devices=2, num_nodes=2), place())


def test_more_processes_than_gpus_are_refused(monkeypatch, place):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"training\.devices=2 and this machine has 1 GPU; ask for 1"):
        launch(["never", "started"], TrainingConfig(devices=2))
    with pytest.raises(ValueError, match="this machine has 1 GPU"):
        place_of.check_world(TrainingConfig(batch_size=8), place())


def test_machines_that_do_not_know_each_other_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"num_nodes=2 without MASTER_ADDR and MASTER_PORT and NODE_RANK"):
        launch(["never", "started"], TrainingConfig(devices=1, num_nodes=2))
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500"), ("NODE_RANK", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"NODE_RANK=2 and training\.num_nodes=2; expected 0 to 1"):
        launch(["never", "started"], TrainingConfig(devices=1, num_nodes=2))


def test_a_failing_process_without_a_word_is_named():
    with (
        limited(),
        pytest.raises(ChildProcessError, match=r"the process of rank \d \(of 2; exit code 3\) was lost: .*no"),
    ):
        launch([sys.executable, "-c", "raise SystemExit(3)"], TrainingConfig(devices=2))


FLAT = ["--data_dir", "digits", "--output_dir", "x"]


def test_the_flat_flags(monkeypatch, place):
    assert read_run([*FLAT, "--num_gpus", "1"]).config.training.devices == 1
    with pytest.raises(ValueError, match=r"--num_gpus 8 and this machine has 0 GPUs; say --training\.devices 8"):
        read_run([*FLAT, "--num_gpus", "8"])
    with pytest.raises(ValueError, match="--num_gpus: expected a whole number"):
        read_run([*FLAT, "--num_gpus"])
    with pytest.raises(ValueError, match=r"--distributed in a single process .* 0 GPUs: .*torchrun --nproc_per_node=N"):
        read_run([*FLAT, "--distributed"])
    assert read_run([*FLAT, "--distributed", "--training.devices", "2"]).config.training.devices == 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert read_run([*FLAT, "--distributed"]).config.training.devices == 4
    assert read_run([*FLAT, "--num_gpus=3", "--distributed"]).config.training.devices == 3
    with pytest.raises(ValueError, match=r"--num_gpus 8 and this machine has 4 GPUs; ask for 4 or less"):
        read_run([*FLAT, "--num_gpus", "8"])
    place()
    assert read_run([*FLAT, "--distributed"]).config.training.devices == "auto"
