from pathlib import Path
import numpy as np, time
from hostile.hostile_server import Round, partners

def test_honest(tmp_path: Path, tiny_encoder: Path) -> None:
    t=time.time()
    with partners(tmp_path, tiny_encoder) as server:
        print("written", time.time()-t)
        r = Round(server)
        r.until("mask"); print("until mask", time.time()-t)
        (total,) = r.run("mask"); print(time.time()-t)
        e, tol = r.expected(r.numbers)
        assert np.abs(total-e).max() <= tol
        assert not r.refusals
        assert server.shares_left() == [1,2,3,4]
        r2 = Round(server, round=2, num_groups=1); r2.run(); print(time.time()-t)
        print(server.charged(1))
