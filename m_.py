from tests.faults import hostile, together
from tests.faults.lab import lab
from tests.faults.tally import Tally
real=Tally.add
hits=[]
def add(self,what,s,i,seen=""):
    hits.append(s and i); real(self,what,s,i,seen)
Tally.add=add
with lab() as l:
    hostile.run(l,12,0,"hostile:credulous"); print("".join(".L"[not h] for h in hits)); hits.clear()
    for case,place,broken in ((together.without,-1,["together:sharing"]),(together.unlike,5,["breaks:broken","forgetful"])):
        together._ahead=lambda rng,kinds:[n for n,k in enumerate(kinds,1) if k=="rename"][place]
        together.BURSTS=((40,100),)
        for seed in (1,2):
            together.run(l,8,seed,[case],[broken]); print(case.__name__,"".join(".L"[not h] for h in hits)); hits.clear()
