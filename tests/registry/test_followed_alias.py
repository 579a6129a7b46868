"""A server that follows an alias of a real registry: a promotion between two requests loses none."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from metricgold.params.sections import Predict
from metricgold.registry.promotion import promote
from metricgold.registry.pyfunc import fetch_model
from metricgold.serve.follow import following
from metricgold.serve.model import ServedModel
from metricgold.serve.stage import newer_model
from tests.registry.project import GATE, register_scores
from tests.registry.test_pyfunc import alter
from tests.serve.test_app import ask, metres
from tests.support.serving import encoded, photograph, serving
from tests.support.waiting import wait_until


def test_a_promotion_reaches_a_server_and_loses_no_request(project):
    register_scores()
    promote(GATE)
    params = Predict(num_inference_steps=1, ensemble_size=1)
    resolve = partial(fetch_model, "models:/metricgold@champion")
    photo = encoded(photograph(16, 24))
    with serving(ServedModel.load(params, *resolve())) as (client, service), ThreadPoolExecutor(4) as pool:

        def predict(_):
            name, depth_m = client.get("/v1/model").json()["name"], metres(ask(client, photo))
            return name, depth_m

        newer = partial(newer_model, service, params, resolve)
        with following(service, newer, 0.05):
            _, old = predict(0)
            answers = [pool.submit(predict, number) for number in range(40)]
            alter(Path("models/metricgold"))
            register_scores(abs_rel=0.1)
            promote(GATE)
            while service.model.name != "metricgold/2":
                answers.append(pool.submit(predict, 0))
                answers[-1].result()
            answers += [pool.submit(predict, number) for number in range(40)]
            new = answers[-1].result()[1]
            wait_until(lambda: all(one.done() for one in answers))
    assert np.abs(new / old - 1).max() > 1e-3
    for answer in answers:
        name, depth_m = answer.result()
        of_either = [np.allclose(depth_m, version, rtol=1e-4) for version in (old, new)]
        assert any(of_either) and (of_either[1] or name == "metricgold/1")
    assert np.allclose(answers[0].result()[1], old, rtol=1e-4)
