"""`python -m minillm_ray` is `minillm-ray`."""

from minillm_ray.cli import main

raise SystemExit(main())
