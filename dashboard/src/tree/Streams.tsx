/** The other daemons, and dots that move along what flows to them and from them. */
import { useReducedMotion } from '@mantine/hooks';
import { useFrame, useThree } from '@react-three/fiber';
import { useEffect, useLayoutEffect, useMemo, useRef } from 'react';
import { BufferAttribute, BufferGeometry, Color, type InstancedMesh, Object3D } from 'three';
import type { Place } from './forest';
import { around, daemons, type Stream } from './streams';

const DOTS = 6;
/** From one end to the other, seconds. */
const JOURNEY = 2.4;
/** Where the processor draws, it has other things to do: frames a second. */
const PLAIN_FRAMES = 8;
const COLOURS: Record<Stream['kind'], string> = {
  copy: '#12b886',
  kept: '#be4bdb',
  leaves: '#339af0',
  arrives: '#339af0',
};
const BROKEN = '#fa5252';

type Point = [x: number, y: number, z: number];
interface Way {
  from: Point;
  to: Point;
  stream: Stream;
}

interface Props {
  places: Place[];
  streams: Stream[];
  plain: boolean;
}

export function Streams({ places, streams, plain }: Props) {
  const others = useMemo(() => daemons(streams), [streams]);
  const names = others.map(({ name }) => name).join('\n');
  const spots = useMemo((): ReadonlyMap<string, [x: number, z: number]> => {
    const at = around(others.length, places.length);
    return new Map(names.split('\n').map((name, index) => [name, at[index] ?? [0, 0]]));
  }, [names, others.length, places.length]);
  const ways = useMemo(() => waysOf(places, streams, spots), [places, streams, spots]);
  if (ways.length === 0) return null;
  return (
    <>
      {[...spots].map(([name, [x, z]]) => (
        <mesh key={name} position={[x, 0.15, z]}>
          <cylinderGeometry args={[0.9, 0.9, 0.5, 6]} />
          <meshLambertMaterial color="#5c7cfa" />
        </mesh>
      ))}
      <Lines ways={ways} />
      <Dots key={ways.length} ways={ways} plain={plain} />
    </>
  );
}

function waysOf(
  places: Place[],
  streams: Stream[],
  spots: ReadonlyMap<string, [x: number, z: number]>,
): Way[] {
  const at = new Map(places.map((place) => [place.vm.id, place.at]));
  return streams.flatMap((stream) => {
    const [here, there] = [at.get(stream.vm), spots.get(stream.daemon)];
    if (!here || !there) return [];
    const machine: Point = [here[0], 1.2, here[1]];
    const daemon: Point = [there[0], 0.4, there[1]];
    const comes = stream.kind === 'arrives' || stream.kind === 'kept';
    return [{ stream, from: comes ? daemon : machine, to: comes ? machine : daemon }];
  });
}

/** A point of an arc between two ends, `part` of the way. */
function along({ from, to }: Way, part: number): Point {
  const mix = (a: number, b: number) => a + (b - a) * part;
  const height = 0.25 * Math.hypot(to[0] - from[0], to[2] - from[2]);
  return [mix(from[0], to[0]), mix(from[1], to[1]) + 4 * height * part * (1 - part), mix(from[2], to[2])];
}

const SEGMENTS = 16;

function Lines({ ways }: { ways: Way[] }) {
  const geometry = useMemo(() => {
    const points: number[] = [];
    for (const way of ways)
      for (let step = 0; step < SEGMENTS; step += 1)
        points.push(...along(way, step / SEGMENTS), ...along(way, (step + 1) / SEGMENTS));
    return new BufferGeometry().setAttribute('position', new BufferAttribute(new Float32Array(points), 3));
  }, [ways]);
  useEffect(() => () => geometry.dispose(), [geometry]);
  return (
    <lineSegments geometry={geometry}>
      <lineBasicMaterial color="#868e96" transparent opacity={0.45} />
    </lineSegments>
  );
}

function Dots({ ways, plain }: { ways: Way[]; plain: boolean }) {
  const mesh = useRef<InstancedMesh>(null);
  const invalidate = useThree((three) => three.invalidate);
  const still = useReducedMotion();
  const model = useMemo(() => new Object3D(), []);

  useLayoutEffect(() => {
    const colour = new Color();
    ways.forEach(({ stream }, index) => {
      colour.set(stream.broken ? BROKEN : COLOURS[stream.kind]);
      for (let dot = 0; dot < DOTS; dot += 1) mesh.current?.setColorAt(index * DOTS + dot, colour);
    });
    if (mesh.current?.instanceColor) mesh.current.instanceColor.needsUpdate = true;
    invalidate();
  }, [ways, invalidate]);

  // Frames are asked for: nothing else changes while streams flow.
  useEffect(() => {
    if (still) return;
    const timer = window.setInterval(() => invalidate(), plain ? 1000 / PLAIN_FRAMES : 1000 / 60);
    return () => window.clearInterval(timer);
  }, [still, plain, invalidate]);

  useFrame(({ clock }) => {
    if (!mesh.current) return;
    const now = still ? 0 : (clock.elapsedTime / JOURNEY) % 1;
    ways.forEach((way, index) => {
      for (let dot = 0; dot < DOTS; dot += 1) {
        const part = (dot / DOTS + (way.stream.broken ? 0 : now)) % 1;
        model.position.set(...along(way, part));
        model.updateMatrix();
        mesh.current?.setMatrixAt(index * DOTS + dot, model.matrix);
      }
    });
    mesh.current.instanceMatrix.needsUpdate = true;
  });
  return (
    <instancedMesh ref={mesh} args={[undefined, undefined, ways.length * DOTS]} frustumCulled={false}>
      <sphereGeometry args={[0.16, 10, 8]} />
      <meshBasicMaterial />
    </instancedMesh>
  );
}
