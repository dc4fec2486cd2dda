# A stand-in for the part of nixpkgs' lib that the module uses, for machines without nixpkgs: the same names, the same results.
# FIRN_NIXPKGS_LIB=DIR has the tests use the real one in DIR.
let
  inherit (builtins)
    all
    attrNames
    attrValues
    concatLists
    concatMap
    concatStringsSep
    elem
    elemAt
    filter
    foldl'
    genList
    head
    isAttrs
    isBool
    isFloat
    isFunction
    isInt
    isList
    isPath
    isString
    length
    listToAttrs
    mapAttrs
    match
    replaceStrings
    stringLength
    substring
    tail
    ;

  lib = {
    inherit
      all
      attrNames
      attrValues
      concatMap
      concatStringsSep
      elem
      elemAt
      filter
      head
      isList
      length
      mapAttrs
      ;
    inherit (builtins) any;
    inherit
      types
      mkOptionType
      evalModules
      ;

    # Lists
    optional = on: x: if on then [ x ] else [ ];
    optionals = on: xs: if on then xs else [ ];
    inherit concatLists;
    imap0 = f: xs: genList (i: f i (elemAt xs i)) (length xs);
    unique = foldl' (seen: x: if elem x seen then seen else seen ++ [ x ]) [ ];
    count = f: xs: length (filter f xs);

    # Attributes
    filterAttrs = f: set: removeAttrs set (filter (name: !f name set.${name}) (attrNames set));
    optionalAttrs = on: set: if on then set else { };
    mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
    genAttrs = names: f: listToAttrs (map (name: { inherit name; value = f name; }) names);

    # Strings
    optionalString = on: s: if on then s else "";
    concatStrings = concatStringsSep "";
    hasPrefix = prefix: s: substring 0 (stringLength prefix) s == prefix;
    removePrefix = prefix: s: if lib.hasPrefix prefix s then substring (stringLength prefix) (-1) s else s;
    toLower = replaceStrings (letters "ABCDEFGHIJKLMNOPQRSTUVWXYZ") (letters "abcdefghijklmnopqrstuvwxyz");
    toInt = s: builtins.fromJSON (head (match "0*([0-9]+)" s));
    escapeShellArg =
      arg:
      if match "[[:alnum:],._+:@%/-]+" (toString arg) != null then
        toString arg
      else
        "'${replaceStrings [ "'" ] [ "'\\''" ] (toString arg)}'";
    escapeShellArgs = args: concatStringsSep " " (map lib.escapeShellArg args);

    # Packages
    getExe = p: "${p}/bin/${p.meta.mainProgram}";
    cleanSource = src: src;
    licenses.asl20.spdxId = "Apache-2.0";
    platforms = {
      linux = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      darwin = [
        "x86_64-darwin"
        "aarch64-darwin"
      ];
    };

    # Options and definitions
    mkOption = option: option // { _type = "option"; };
    mkEnableOption =
      what:
      lib.mkOption {
        type = types.bool;
        default = false;
        description = "Whether to enable ${what}.";
      };
    literalExpression = text: {
      _type = "literalExpression";
      inherit text;
    };
    mkIf = condition: content: {
      _type = "if";
      inherit condition content;
    };
    mkMerge = contents: {
      _type = "merge";
      inherit contents;
    };
    mkOverride = priority: content: {
      _type = "override";
      inherit priority content;
    };
    mkDefault = lib.mkOverride 1000;
    mkForce = lib.mkOverride 50;
  };

  letters = s: genList (i: substring i 1 s) (stringLength s);
  show = concatStringsSep ".";
  isType = type: v: isAttrs v && v._type or "" == type;

  # A definition is an attribute set with a value, which may still be an mkIf, mkMerge or mkOverride.

  # What is left of definitions when the conditions are known: values with their priorities.
  discharge =
    priority: v:
    if isType "if" v then
      (if v.condition then discharge priority v.content else [ ])
    else if isType "merge" v then
      concatMap (discharge priority) v.contents
    else if isType "override" v then
      discharge v.priority v.content
    else
      [
        {
          value = v;
          inherit priority;
        }
      ];

  # Attribute sets, with the conditions that stood around them now around each attribute, so that names are known without values.
  pushDown =
    v:
    if isType "if" v then
      map (mapAttrs (_: lib.mkIf v.condition)) (pushDown v.content)
    else if isType "merge" v then
      concatMap pushDown v.contents
    else if isType "override" v then
      map (mapAttrs (_: lib.mkOverride v.priority)) (pushDown v.content)
    else
      [ v ];

  # The value of an option, or of a part of one.
  mergeDefinitions =
    loc: type: values:
    let
      defs = concatMap (discharge 100) values;
      best = foldl' (least: d: if d.priority < least then d.priority else least) 9999 defs;
      used = filter (d: d.priority == best) defs;
      wrong = filter (d: !type.check d.value) used;
    in
    if used == [ ] then
      throw "The option `${show loc}' is used but not defined."
    else if wrong != [ ] then
      throw "A definition for option `${show loc}' is not of type `${type.description or type.name}'."
    else
      type.merge loc used;

  mkOptionType = { check ? _: true, merge ? mergeEqual, ... }@type: type // { inherit check merge; };
  mergeEqual =
    loc: defs:
    if all (d: d.value == (head defs).value) defs then
      (head defs).value
    else
      throw "The option `${show loc}' has conflicting definition values.";
  simple = name: check: mkOptionType { inherit name check; };

  types = {
    bool = simple "boolean" isBool;
    str = simple "string" isString;
    int = simple "signed integer" isInt;
    float = simple "floating point number" isFloat;
    raw = simple "raw value" (_: true);
    path = simple "absolute path" (v: isPath v || (isString v || v ? outPath) && substring 0 1 (toString v) == "/");
    package = simple "package" (v: v.type or "" == "derivation");
    ints.u16 = simple "16 bit unsigned integer; between 0 and 65535 (both inclusive)" (v: isInt v && v >= 0 && v <= 65535);
    port = types.ints.u16;
    enum = values: simple "one of ${builtins.toJSON values}" (v: elem v values);
    strMatching = pattern: simple "string matching the pattern ${pattern}" (v: isString v && match pattern v != null);
    nullOr =
      type:
      mkOptionType {
        name = "null or ${type.name}";
        check = v: v == null || type.check v;
        merge = loc: defs: if all (d: d.value == null) defs then null else type.merge loc defs;
      };
    oneOf =
      of:
      mkOptionType {
        name = "one of several types";
        check = v: builtins.any (type: type.check v) of;
        merge = loc: defs: (head (filter (type: all (d: type.check d.value) defs) of)).merge loc defs;
      };
    listOf =
      type:
      mkOptionType {
        name = "list of ${type.name}";
        check = isList;
        merge = loc: defs: map (v: mergeDefinitions loc type [ v ]) (concatMap (d: d.value) defs);
      };
    attrsOf =
      type:
      mkOptionType {
        name = "attribute set of ${type.name}";
        check = isAttrs;
        merge =
          loc: defs:
          let
            sets = concatMap (d: pushDown d.value) defs;
            defined = name: concatMap (set: lib.optional (set ? ${name}) set.${name}) sets;
            there = filter (name: concatMap (discharge 100) (defined name) != [ ]) (lib.unique (concatMap attrNames sets));
          in
          lib.genAttrs there (name: mergeDefinitions (loc ++ [ name ]) type (defined name));
      };
    submodule =
      module:
      mkOptionType {
        name = "submodule";
        check = v: isAttrs v || isFunction v;
        merge =
          loc: defs:
          (evaluate {
            inherit loc;
            modules = [ module ] ++ map (d: if isFunction d.value then d.value else { config = d.value; }) defs;
            specialArgs.name = builtins.elemAt loc (length loc - 1);
          }).config;
      };
  };

  evalModules =
    {
      modules,
      specialArgs ? { },
    }:
    evaluate {
      loc = [ ];
      inherit modules specialArgs;
    };

  evaluate =
    {
      loc,
      modules,
      specialArgs,
    }:
    let
      args = specialArgs // {
        inherit lib config;
        options = throw "the stand-in for lib has no `options'";
      };
      load =
        module:
        let
          value = if isPath module || isString module then import module else module;
          m = if isFunction value then value args else value;
          full =
            if m ? options || m ? config then
              m
            else
              {
                imports = m.imports or [ ];
                config = removeAttrs m [ "imports" ];
              };
        in
        concatMap load (m.imports or [ ]) ++ [ full ];
      all' = concatMap load modules;
      config = evalTree {
        inherit loc;
        trees = map (m: m.options or { }) all';
        sets = concatMap (m: pushDown (m.config or { })) all';
        freeform = concatMap (m: lib.optional (m ? freeformType) m.freeformType) all';
      };
    in
    {
      inherit config;
    };

  evalTree =
    {
      loc,
      trees,
      sets,
      freeform ? [ ],
    }:
    let
      declared = lib.unique (concatMap attrNames trees);
      here = name: of: concatMap (set: lib.optional (set ? ${name}) set.${name}) of;
      more = filter (name: !elem name declared) (lib.unique (concatMap attrNames sets));
      value =
        name:
        let
          options = here name trees;
          at = loc ++ [ name ];
        in
        if isType "option" (head options) then
          mergeDefinitions at (head options).type (
            here name sets
            ++ concatMap (o: lib.optional (o ? default) (lib.mkOverride 1500 o.default)) options
          )
        else
          evalTree {
            loc = at;
            trees = options;
            sets = concatMap pushDown (here name sets);
          };
      undeclared =
        if more == [ ] then
          { }
        else if freeform == [ ] then
          throw "The option `${show (loc ++ [ (head more) ])}' does not exist."
        else
          mergeDefinitions loc (head freeform) (map (set: removeAttrs set declared) sets);
    in
    undeclared // lib.genAttrs declared value;
in
lib
