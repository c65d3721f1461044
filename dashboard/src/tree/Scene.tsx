/** The forest in space. One draw call for all machines; a frame is drawn only when something has changed. */
import { useComputedColorScheme } from '@mantine/core';
import { Canvas, type ThreeEvent, useThree } from '@react-three/fiber';
import { useNavigate } from '@tanstack/react-router';
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from 'react';
import { BufferAttribute, BufferGeometry, Color, type InstancedMesh, Object3D } from 'three';
import { OrbitControls } from 'three/addons/controls/OrbitControls.js';
import type { Tracks } from '../live/rates';
import { bytes, percent } from '../units/format';
import { type Node, type Place, places } from './forest';
import { colourOf } from './load';
import { Streams } from './Streams';
import type { Stream } from './streams';

interface Props {
  roots: Node[];
  usage: Tracks;
  streams: Stream[];
  /** No smooth edges: the processor draws. */
  plain: boolean;
}

export default function Scene({ roots, usage, streams, plain }: Props) {
  const dark = useComputedColorScheme('light') === 'dark';
  const all = useMemo(() => places(roots), [roots]);
  const [over, setOver] = useState<Place>();
  const distance = 10 + Math.sqrt(all.length) * 2.2;
  return (
    <div style={{ position: 'relative', height: '100%' }} aria-hidden>
      <Canvas
        frameloop="demand"
        dpr={plain ? 1 : [1, 2]}
        gl={{ antialias: !plain }}
        camera={{ position: [distance * 0.6, distance * 0.7, distance * 0.6], fov: 45, far: 2000 }}
      >
        <color attach="background" args={[dark ? '#14181c' : '#f4f6f8']} />
        <ambientLight intensity={1.4} />
        <directionalLight position={[20, 40, 10]} intensity={1.6} />
        <Controls />
        <Host />
        <Machines places={all} usage={usage} onOver={setOver} />
        <Streams places={all} streams={streams} plain={plain} />
        <Lineage places={all} colour={dark ? '#8fa3b0' : '#495057'} />
      </Canvas>
      {over && <Hint place={over} usage={usage} />}
    </div>
  );
}

/** Turning and coming nearer; each move asks for a frame. */
function Controls() {
  const { camera, gl, invalidate } = useThree();
  useEffect(() => {
    const controls = new OrbitControls(camera, gl.domElement);
    controls.maxPolarAngle = Math.PI / 2.1;
    controls.addEventListener('change', () => invalidate());
    return () => controls.dispose();
  }, [camera, gl, invalidate]);
  return null;
}

function Host() {
  return (
    <mesh position={[0, 0.15, 0]}>
      <cylinderGeometry args={[0.9, 0.9, 0.5, 6]} />
      <meshLambertMaterial color="#0f766e" />
    </mesh>
  );
}

interface MachinesProps {
  places: Place[];
  usage: Tracks;
  onOver: (place: Place | undefined) => void;
}

/** A machine's height is its memory, its colour its load. */
function Machines({ places, usage, onOver }: MachinesProps) {
  const mesh = useRef<InstancedMesh>(null);
  const invalidate = useThree((three) => three.invalidate);
  const navigate = useNavigate();

  useLayoutEffect(() => {
    if (!mesh.current) return;
    const [model, colour] = [new Object3D(), new Color()];
    places.forEach(({ vm, at: [x, z] }, index) => {
      const now = usage.get(vm.id)?.usage;
      const height = 0.4 + Math.log2(1 + (vm.spec.ram_bytes ?? 0) / 2 ** 28);
      model.position.set(x, height / 2, z);
      model.scale.set(1, height, 1);
      model.updateMatrix();
      mesh.current?.setMatrixAt(index, model.matrix);
      mesh.current?.setColorAt(index, colour.set(colourOf(vm, now)));
    });
    mesh.current.instanceMatrix.needsUpdate = true;
    if (mesh.current.instanceColor) mesh.current.instanceColor.needsUpdate = true;
    mesh.current.computeBoundingSphere();
    invalidate();
  }, [places, usage, invalidate]);

  const at = ({ instanceId }: ThreeEvent<PointerEvent | MouseEvent>) =>
    instanceId === undefined ? undefined : places[instanceId];
  return (
    // biome-ignore lint/a11y/noStaticElementInteractions: this is no element of the page; the tree table is for keys.
    <instancedMesh
      // Another number of machines is another buffer.
      key={places.length}
      ref={mesh}
      args={[undefined, undefined, places.length]}
      onPointerMove={(event) => onOver(at(event))}
      onPointerOut={() => onOver(undefined)}
      onClick={(event) => {
        const place = at(event);
        if (place && event.delta < 4) void navigate({ to: `/vms/${place.vm.name}` });
      }}
    >
      <boxGeometry args={[1.2, 1, 1.2]} />
      <meshLambertMaterial />
    </instancedMesh>
  );
}

/** Lines on the ground from each clone to what it was made from. */
function Lineage({ places, colour }: { places: Place[]; colour: string }) {
  const geometry = useMemo(() => {
    const points = places.flatMap(({ at, from }) =>
      from ? [at[0], 0.05, at[1], from[0], 0.05, from[1]] : [],
    );
    return new BufferGeometry().setAttribute('position', new BufferAttribute(new Float32Array(points), 3));
  }, [places]);
  useEffect(() => () => geometry.dispose(), [geometry]);
  return (
    <lineSegments geometry={geometry}>
      <lineBasicMaterial color={colour} />
    </lineSegments>
  );
}

function Hint({ place: { vm }, usage }: { place: Place; usage: Tracks }) {
  const now = usage.get(vm.id)?.usage;
  const words = [vm.name, vm.state, now && percent(now.cpu), now && bytes(now.resident)]
    .filter(Boolean)
    .join(' · ');
  return (
    <div
      style={{
        position: 'absolute',
        left: 12,
        top: 12,
        padding: '4px 10px',
        borderRadius: 6,
        background: 'var(--mantine-color-body)',
        border: '1px solid var(--mantine-color-default-border)',
      }}
    >
      {words}
    </div>
  );
}
