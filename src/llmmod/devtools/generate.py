"""PROVISIONAL: writes schema/generated/ by reflection."""
import dataclasses, types, typing, enum, pathlib
def tr(t):
    if t in (bool,int,float,str): return t.__name__
    if t is typing.Any: return "Any"
    if isinstance(t,type) and issubclass(t,enum.Enum): return "str"
    o=typing.get_origin(t)
    if o in (typing.Union,types.UnionType):
        parts=[tr(a) for a in typing.get_args(t) if a is not type(None)]
        opt=type(None) in typing.get_args(t)
        parts=sorted(set(parts))
        if "Any" in parts or any("[" in p for p in parts) and len(parts)>1: return "Any"
        return " | ".join(parts)+(" | None" if opt else "")
    if o is list:
        i=tr(typing.get_args(t)[0]); return f"list[{i}]" if i in("int","float","str","bool") else "list[Any]"
    if o is dict or t is dict: return "dict[str, Any]"
    if o is typing.Literal: return "str" if all(isinstance(a,str) for a in typing.get_args(t)) else "Any"
    return "Any"
def write(cls,name,path,target):
    h=typing.get_type_hints(cls); out=["from __future__ import annotations","from dataclasses import dataclass, field","from typing import Any","","@dataclass",f"class {name}:",f'    _target_: str = "{target}"']
    for f in dataclasses.fields(cls):
        ty=tr(h[f.name])
        d=f.default if f.default is not dataclasses.MISSING else (f.default_factory() if f.default_factory is not dataclasses.MISSING else None)
        if isinstance(d,enum.Enum): d=d.value
        if not isinstance(d,(bool,int,float,str,type(None),list,dict)): d=None; ty="Any"
        if d is None and "None" not in ty and ty!="Any": ty+=" | None"
        if ty=="float" and isinstance(d,int): d=float(d)
        out.append(f"    {f.name}: {ty} = "+(f"field(default_factory={'list' if isinstance(d,list) else 'dict'})" if isinstance(d,(list,dict)) else repr(d)))
    pathlib.Path(path).write_text("\n".join(out)+"\n")
if __name__=="__main__":
    from transformers import Seq2SeqTrainingArguments; from trl import SFTConfig; from peft import LoraConfig
    g=pathlib.Path(__file__).parents[1]/"schema/generated"
    write(Seq2SeqTrainingArguments,"Seq2SeqTrainingArguments",g/"seq2seq.py","transformers.Seq2SeqTrainingArguments")
    write(SFTConfig,"SFTConfig",g/"sft.py","trl.SFTConfig")
    write(LoraConfig,"LoraConfig",g/"lora.py","peft.LoraConfig")
