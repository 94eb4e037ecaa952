"""python -m resgrow.experiments.localise NAME --out DIR"""

from resgrow.experiments.localise.command import main

main()
