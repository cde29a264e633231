import json
from pathlib import Path
import torch
from safetensors import safe_open
from hybrid.adapters import load
G=Path(__file__).parent/'golden'
def golden(name):
    with safe_open(G/name,'pt') as f:
        return {k:f.get_tensor(k) for k in f.keys()}, json.loads(f.metadata()['config'])
def rollout(m,cond,s,n):
    c=cond.cat(cond.null()) if s!=1 else cond
    b=len(cond)
    logits,st=m.prefill(c,n)
    out=[]
    for i in range(n):
        l=logits if s==1 else logits[b:]+s*(logits[:b]-logits[b:])
        t=l.argmax(-1); out.append(t)
        if i+1<n:
            tt=t if s==1 else torch.cat((t,t))
            logits=m.decode(tt[:,None],torch.full((len(tt),),i),st)[:,-1]
    return torch.stack(out,1)
def test_c2i():
    t,c=golden('llamagen_c2i.safetensors')
    m=load('llamagen',G/'llamagen_c2i.safetensors')
    cond=m.condition(t['labels'])
    assert (m.score(t['tokens'],cond)-t['logits']).abs().max()<1e-4
    assert (m.score(t['tokens'],cond.null())-t['logits_uncond']).abs().max()<1e-4
    assert (rollout(m,cond,1,16)==t['greedy_cfg1']).all()
    assert (rollout(m,cond,4,16)==t['greedy_cfg4']).all()
def test_t2i():
    t,c=golden('llamagen_t2i.safetensors')
    m=load('llamagen',G/'llamagen_t2i.safetensors')
    cond=m.condition((t['caption_emb'],t['caption_mask']))
    assert (m.score(t['tokens'],cond)-t['logits']).abs().max()<1e-4
    assert (m.score(t['tokens'],cond.null())-t['logits_uncond']).abs().max()<1e-4
    assert (rollout(m,cond,1,16)==t['greedy_cfg1']).all()
    assert (rollout(m,cond,7.5,16)==t['greedy_cfg7.5']).all()
def test_mg():
    t,c=golden('maskgil_c2i.safetensors')
    m=load('maskgil',G/'maskgil_c2i.safetensors')
    cond=m.condition(t['labels'])
    k=t['codes'].flatten(1); k=torch.where(k==64,-1,k)
    assert (m.logits(k,cond)-t['logits'][...,:64]).abs().max()<1e-4
    assert (m.logits(k,cond.null())-t['logits_uncond'][...,:64]).abs().max()<1e-4
